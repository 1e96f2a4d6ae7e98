"""The checker of shape annotations: beartype, to which an int is also a float, as it is to every type checker."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
