"""Names that a user picks, once for the library, the configs, the command line and the nodes. No torch here."""

# What is taken of a query image, see `maps`: the name, and what the nodes' lists call it.
MAPS = {
    "none": "none",
    "canny": "canny",
    "softedge": "soft edge",
    "segmentation": "segmentation",
    "depth": "depth",
    "normal": "normal",
    "scribble": "scribble",
}

# How an image of other proportions comes to a size, see `images.fit_image`.
FITS = ("crop", "pad", "stretch")

# How k context images are joined, see `model.visual_context.Join`.
AGGREGATIONS = ("mean", "sum", "concat")

# What a step of a flow does with the clean image it predicts, by ComfyUI's names, see `sampling.flow.FlowSampler`.
SAMPLERS = ("lcm", "euler")

# fp32; bf16, which is autocast; bf16_matmul, see `precision.multiply_in_bf16`. Autocast is for training alone.
PRECISIONS = ("fp32", "bf16", "bf16_matmul")
SAMPLING_PRECISIONS = ("fp32", "bf16_matmul")
