"""Trained nets for other programs: ONNX, `torch.export`, safetensors and timm's weights, each checked against the net.

`formats.py` writes and reads them, `nets.py` has what is exported, `checking.py` compares on test images,
`quantising.py` makes 8-bit ONNX models.
"""
