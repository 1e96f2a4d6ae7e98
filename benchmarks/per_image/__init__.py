"""Transforms of `jax_cifar.augment` as a data loader's worker applies them: to one image after another.

crop = reference(RandomCrop(padding=4))
images = [crop.apply(image, crop.draw(rng, image.shape)) for image in images]

The same operations with the same probabilities, written from their definitions: with Pillow where Pillow has the
operation, as torchvision does for Pillow's images; else with NumPy and SciPy. Albumentations has OpenCV for the latter,
which is not measured here. Tables that depend on the size of the images alone are made once.

An image is of 8 bits, or floating from 0 to 1, as torchvision's tensors are: nothing is rounded then, and where Pillow
would round or knows no blending at the border, PyTorch computes. The draws of an image are those of the transform, with
the axis of the batch taken away: the parity tests judge the transforms by `apply`, the benchmark times both.
"""

from benchmarks.per_image import boxes, colour, geometry, groups, policies
from benchmarks.per_image.base import reference
from benchmarks.per_image.groups import chain, mix_reference

# The modules list their references where they are imported.
__all__ = ["boxes", "chain", "colour", "geometry", "groups", "mix_reference", "policies", "reference"]
