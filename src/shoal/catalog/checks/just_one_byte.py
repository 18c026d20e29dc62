"""073: a byte a gradient is enough, and the log of bytes is the model."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, at_tick
from shoal.catalog.claims import Bound, Claim, Progress, claim

COMMON: dict[str, Any] = {"every": 50}
PEERS, ROUNDS = 8, 400
BYTE: dict[str, Any] = {"graph": "complete", "codec": "log-byte"}
FLOAT: dict[str, Any] = {"graph": "complete", "codec": ()}
# Each arm's best of lr in {0.003, 0.004, 0.005, 0.006, 0.008} by the mean final accuracy on seeds 100-103.
LR = {"byte": 0.006, "float": 0.004, "one peer": 0.008}
LATE = {"name": "churn", "initial": 0.875, "schedule": [[ROUNDS // 2, "join", [PEERS - 1]]]}


@claim("just-one-byte")
class JustOneByteClaim(Claim):
    bounds = (
        Bound("accuracy gain", ">=", 0.2, "a proof of concept on small language models"),
        Bound("|byte - float|", "<=", 0.03),
        Bound("bytes a gradient", "==", 1.0, "one byte"),
        Bound("8 peers - 1 peer", ">=", 0.0),
        Bound("late joiner's difference", "==", 0.0),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "peers": PEERS, "rounds": ROUNDS, "lr": LR}
    notes = ("An MLP on digits that starts half trained (classes 0 to 4), not a language model.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        plan = {**COMMON, "peers": PEERS, "rounds": ROUNDS}
        byte = arm("just-one-byte", seed, **plan, network=BYTE, lr=LR["byte"])
        progress("floats", 0.25)
        plain = arm("just-one-byte", seed, **plan, network=FLOAT, lr=LR["float"])
        progress("one peer", 0.5)
        alone = arm("just-one-byte", seed, **{**plan, "peers": 1}, network=BYTE, lr=LR["one peer"])
        progress("late joiner", 0.75)
        network = {**BYTE, "clock": LATE}
        late = arm("just-one-byte", seed, **plan, network=network, lr=LR["byte"])
        # Before the first exchange of hashes nothing but gradients is sent.
        few = arm("just-one-byte", seed, **{**plan, "rounds": 10}, network=BYTE, lr=LR["byte"])
        end = {
            name: r.metrics["accuracy"] for name, r in (("byte", byte), ("float", plain), ("one", alone))
        }
        return {
            "accuracy gain": end["byte"] - at_tick(byte, 0),
            "|byte - float|": abs(end["byte"] - end["float"]),
            "bytes a gradient": few.bytes_sent / (10 * PEERS * (PEERS - 1)),
            "8 peers - 1 peer": end["byte"] - end["one"],
            "late joiner's difference": float((late.output[-1] - late.output[0]).abs().max()),
            "accuracy, byte": end["byte"],
            "accuracy, float": end["float"],
            "accuracy, one peer": end["one"],
            "full gradient, bytes": 4.0 * byte.output.shape[1],
        }
