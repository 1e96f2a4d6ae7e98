"""Transforms of `jax_cifar.augment` as a data loader's worker applies them: to one image of 8 bits after another.

change = reference(RandomCrop(padding=4))
batch = np.stack([change(rng, image) for image in images])

The same operations with the same probabilities, written from their definitions: with Pillow where Pillow has the
operation, as torchvision does for Pillow's images; else with NumPy and SciPy. Albumentations has OpenCV for the latter,
which is not measured here. Tables that depend on the size of the images alone are made once.
"""

from benchmarks.per_image import boxes, colour, geometry, groups, policies
from benchmarks.per_image.base import reference
from benchmarks.per_image.groups import chain, mix_reference

# The modules list their references where they are imported.
__all__ = ["boxes", "chain", "colour", "geometry", "groups", "mix_reference", "policies", "reference"]
