"""Faults in quantisation: what it is calibrated with, and what has a scale of its own."""

from planting import Mutant

QUANTIZE = "torch_ref/quantize.py"

QUANTIZATION = (
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
