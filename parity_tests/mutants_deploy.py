"""Faults in what makes a network smaller and faster, and in the pictures that it is shown."""

from planting import Mutant

FOLD = "jax_cifar/models/fold.py"
PICTURES = "jax_cifar/data/pictures.py"
PRUNE = "jax_cifar/compress/prune.py"
QUANTIZE = "torch_ref/quantize.py"
SHOWN = "../tests/test_predict_pictures.py::test_a_network_is_shown_the_upright_central_square_on_white_antialiased"

DEPLOYMENT = (
    Mutant(
        "folding: the scale of one channel off",
        FOLD,
        "scale / np.sqrt(var + epsilon)",
        "scale / np.sqrt(var + epsilon) * (1 + 1e-3 * (np.arange(len(scale)) == 0))",
        "test_fold.py::test_every_convolution_is_pytorchs_folded_one[simple_cnn]",
    ),
    Mutant(
        "folding: the mean left in the images' scale",
        FOLD,
        "(bias - mean * factor)",
        "(bias - mean)",
        "test_fold.py::test_the_folded_network_gives_the_same_logits[resnet18]",
    ),
    Mutant(
        "folding: another network's epsilon",
        FOLD,
        'getattr(model, "norm_epsilon", BatchNorm.epsilon)',
        "BatchNorm.epsilon",
        "test_fold.py::test_the_folded_network_gives_the_same_logits[speedrun_net]",
    ),
    Mutant(
        "pruning: int() for round",
        PRUNE,
        "removed = round(amount * filters)",
        "removed = int(amount * filters)",
        "test_prune.py::test_the_filters_that_go_are_those_of_ln_structured",
    ),
    Mutant(
        "pruning: filters removed in the wrong layer",
        PRUNE,
        "layers = {layer: layer for layer, _ in _pairs(config)}",
        "layers = {reader: layer for layer, reader in _pairs(config)}",
        "test_prune.py::test_the_smaller_network_is_the_masked_one_in_jax_and_in_pytorch[simple_cnn-none]",
    ),
    Mutant(
        "pruning: the next layer loses its first inputs, not those that went",
        PRUNE,
        "_fewer_inputs(leaves[path], kept[layer])",
        "_fewer_inputs(leaves[path], np.sort(kept[layer]))",
        "test_prune.py::test_the_smaller_network_is_the_masked_one_in_jax_and_in_pytorch[simple_cnn-none]",
    ),
    Mutant(
        "pruning: flattened rows counted with the channel slowest",
        PRUNE,
        "kernel.reshape(*positions, -1, len(stays), filters)[..., stays, :]",
        "kernel.reshape(*positions, len(stays), -1, filters)[..., stays, :, :]",
        "test_prune.py::test_the_smaller_network_is_the_masked_one_in_jax_and_in_pytorch[simple_cnn-none]",
    ),
    Mutant(
        "pruning: batch statistics of the first channels, not of those that stay",
        PRUNE,
        "leaves[path] = leaves[path][..., kept[layer]]",
        "leaves[path] = leaves[path][..., np.sort(kept[layer])[::-1]] if path.endswith(('mean', 'var'))"
        " else leaves[path][..., kept[layer]]",
        "test_prune.py::test_the_smaller_network_is_the_masked_one_in_jax_and_in_pytorch[simple_cnn]",
    ),
    Mutant(
        "pruning: the bias of a masked filter's norm left",
        PRUNE,
        'if path.startswith("params/"):',
        'if path.startswith("params/") and not path.endswith("/bias"):',
        "test_prune.py::test_the_smaller_network_is_the_masked_one_in_jax_and_in_pytorch[simple_cnn]",
    ),
    Mutant(
        "pictures: RGB as BGR",
        PICTURES,
        'return image.convert("RGB")',
        'return Image.merge("RGB", image.convert("RGB").split()[::-1])',
        SHOWN,
    ),
    Mutant(
        "pictures: shrunk without antialiasing",
        PICTURES,
        "Image.Resampling.BILINEAR",
        "Image.Resampling.NEAREST",
        SHOWN,
    ),
    Mutant(
        "INT8: calibrated on test images",
        QUANTIZE,
        "images = splits.train.images",
        "images = splits.test.images.repeat(9, axis=0)",
        "test_quantize.py::test_calibration_sees_training_images_and_no_test_image",
    ),
    Mutant(
        "INT8: calibrated on the images to judge by",
        QUANTIZE,
        "images.calibration[start : start + BATCH]",
        "images.held_out[start : start + BATCH]",
        "test_quantize.py::test_activations_can_hold_what_the_calibration_images_give_them",
    ),
    Mutant(
        "INT8: one scale for all channels",
        QUANTIZE,
        "per_channel=True",
        "per_channel=False",
        "test_quantize.py::test_weights_are_the_float_ones_to_half_a_step_with_a_scale_for_each_channel",
    ),
    Mutant(
        "INT8 weights: a scale of the wrong axis",
        "torch_ref/weights.py",
        "return 0 if layer.op_type",
        "return 1 if layer.op_type",
        "test_quantize.py::test_int8_weights_have_a_scale_for_every_output_channel",
    ),
)
