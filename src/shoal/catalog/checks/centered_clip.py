"""119: centred clipping with worker momentum stands where history-free rules fall."""

from __future__ import annotations

from typing import Any, ClassVar

from shoal.catalog.arms import arm, final
from shoal.catalog.claims import Bound, Claim, Progress, claim

COMMON: dict[str, Any] = {"peers": 25, "rounds": 300, "every": 300, "lr": 0.1}
ATTACKS: dict[str, dict[str, Any]] = {
    "sign-flip": {"attack": "sign-flip", "hostile": 0.2},
    "alie 1.5": {"attack": "alie(z=1.5)", "hostile": 0.2},
    "random": {"attack": "random", "hostile": 0.2},
    "ipm 10": {"attack": "ipm(epsilon=10)", "hostile": 0.2},
    "ipm 0.1 (11 hostile)": {"attack": "ipm(epsilon=0.1)", "hostile": 0.44},
}
OTHERS = ("mean", "median", "krum", "trimmed-mean", "geometric-median")


def rule_of(name: str, attack: str) -> str:
    """The rule, told the true number of hostile peers where it asks."""
    f = 11 if "11" in attack else 5
    return f"{name}(f={f})" if name in {"krum", "trimmed-mean"} else name


@claim("centered-clip")
class CenteredClipClaim(Claim):
    bounds = (
        Bound("worst of CC (tau 1, b 0.9)", ">=", 0.8, "close to attack-free under all attacks (CIFAR-10)"),
        Bound(
            "best other rule's worst (b 0)",
            "<=",
            0.65,
            "every rule without history fails under some attack",
        ),
        Bound("alie: CC b 0.9 - b 0", ">=", 0.1),
    )
    config: ClassVar[dict[str, Any]] = {**COMMON, "attacks": ATTACKS, "others": OTHERS}
    notes = ("Smaller than the paper: MLP 196-32-10 on digits, iid, 300 steps.",)

    def measure(self, seed: int, progress: Progress) -> dict[str, float]:
        def go(attack: str, rule: str, beta: float) -> float:
            progress(f"{attack}: {rule}, b {beta}")
            return final(
                arm("centered-clip", seed, **COMMON, beta=beta, network={**ATTACKS[attack], "rule": rule})
            )

        clip = {a: go(a, "centered-clip(tau=1)", 0.9) for a in ATTACKS}
        worst = {o: min(go(a, rule_of(o, a), 0.0) for a in ATTACKS) for o in OTHERS}
        plain = go("alie 1.5", "centered-clip(tau=1)", 0.0)
        sweep = {t: min(go(a, f"centered-clip(tau={t})", 0.9) for a in ATTACKS) for t in (0.1, 3.0)}
        return {
            "worst of CC (tau 1, b 0.9)": min(clip.values()),
            "best other rule's worst (b 0)": max(worst.values()),
            "alie: CC b 0.9 - b 0": clip["alie 1.5"] - plain,
            **{f"CC under {a}": v for a, v in clip.items()},
            **{f"worst of {o}": v for o, v in worst.items()},
            **{f"worst of CC at tau {t:g}": v for t, v in sweep.items()},
        }
