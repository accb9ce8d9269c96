"""qwix's quantization-aware training (W8A8) of bitjax's Linen ResNet-20.

Run: benchmarks/peers/run qwix [--rounds 25]
"""

from typing import Any

from benchmarks.peers.linen import Batch, Family, linen_floats, linen_step
from benchmarks.peers.measure import main
from bitjax.models import resnet20


def family(batch: Batch) -> Family:
    """float, and W8A8 as integers and as floats, with ranges of each batch."""
    import qwix

    every = {"module_path": ".*", "weight_qtype": "int8", "act_qtype": "int8"}

    def quantized(provider: Any) -> Any:
        return linen_step(batch, qwix.quantize_model(resnet20(), provider))

    # Its README's provider; XLA's CPU library has no fast convolution of integers. The provider for
    # LiteRT stays with floats.
    floats = qwix.QuantizationRule(**every, act_static_scale=False)
    return {
        **linen_floats(batch),
        "qwix w8a8": quantized(qwix.QtProvider([qwix.QtRule(**every)])),
        "qwix w8a8, per tensor": quantized(
            qwix.QtProvider([qwix.QtRule(**every, disable_channelwise_axes=True)])
        ),
        "qwix w8a8, LiteRT's floats": quantized(qwix.OdmlQatProvider([floats])),
    }


if __name__ == "__main__":
    main(["qwix"], family)
