"""How programs are compiled and over which devices they are spread."""
