"""Faults that a port makes, planted one at a time: each must fail the test named beside it.

`make mutants` plants them all and prints the table; `make test` plants the first.
"""

from mutants_augment import AUGMENTATION
from mutants_deploy import DEPLOYMENT
from mutants_networks import NETWORKS
from mutants_platforms import PLATFORMS
from mutants_training import LEARNING, STEPS

MUTANTS = (*NETWORKS, *LEARNING, *AUGMENTATION, *STEPS, *DEPLOYMENT, *PLATFORMS)
