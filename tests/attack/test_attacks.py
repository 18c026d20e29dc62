"""Attacks on messages and on data: hand-computed cases, what they leave alone, and that they work."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from shoal.attack.alie import Alie, deviation
from shoal.attack.backdoor import Backdoor
from shoal.attack.ipm import Ipm
from shoal.attack.label_flip import LabelFlip
from shoal.attack.nan import Nan
from shoal.attack.noise import Noise, Random
from shoal.attack.sign_flip import SignFlip
from shoal.core import BadInput, Draws, Scene, attacks

SPOKEN = [
    "sign-flip", "sign-flip(scale=5)", "noise", "random(sigma=3)", "alie", "alie(z=1.5)",
    'alie(knowledge="coalition")', "ipm", "ipm(epsilon=10)", 'ipm(knowledge="self")', "nan",
    "backdoor(scale=10)",
]  # fmt: skip


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(
    honest: Tensor, hostile: list[int], base: Tensor | None = None, silent: tuple[int, ...] = ()
) -> Scene:
    n = len(honest)
    bad, speaking = torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)
    bad[hostile] = True
    speaking[list(silent)] = False
    draws = Draws(0, "attack", torch.arange(n), 3)
    return Scene(honest, torch.zeros_like(honest) if base is None else base, bad, speaking, draws, 3)


# -- messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPOKEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_hostile_speakers_change_and_nothing_in_place(spec, dtype):
    honest, base = normal(0, 8, 5).to(dtype), normal(1, 8, 5).to(dtype)
    here = scene(honest, [1, 4, 6], base, silent=(6,))
    before = honest.clone(), base.clone()
    sent = attacks(spec).message(here)
    assert sent.dtype == dtype
    quiet = torch.tensor([0, 2, 3, 5, 6, 7])
    assert torch.equal(sent[quiet], honest[quiet])
    assert bool((sent[[1, 4]] != honest[[1, 4]]).any(1).all())
    assert torch.equal(honest, before[0])
    assert torch.equal(base, before[1])


@pytest.mark.parametrize("spec", SPOKEN)
def test_without_hostile_speakers_all_is_as_it_was(spec):
    honest = normal(0, 5, 3)
    assert torch.equal(attacks(spec).message(scene(honest, [])), honest)
    assert torch.equal(attacks(spec).message(scene(honest, [2], silent=(2,))), honest)


@pytest.mark.parametrize("spec", SPOKEN)
def test_with_hostile_peers_alone_messages_stay_numbers(spec):
    sent = attacks(spec).message(scene(normal(0, 4, 3), [0, 1, 2, 3]))
    assert bool(sent.isfinite().all()) == (spec != "nan")


def test_sign_flip_by_hand():
    honest, base = torch.tensor([[3.0, 1.0], [2.0, 5.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert SignFlip().message(scene(honest, [1], base)).tolist() == [[3, 1], [0, -3]]
    assert SignFlip(scale=5).message(scene(honest, [1], base)).tolist() == [[3, 1], [-4, -19]]
    assert SignFlip().message(scene(honest, [1])).tolist() == [[3, 1], [-2, -5]]


def test_ipm_by_hand():
    """Honest updates (2, 0) and (0, 4) have the mean (1, 2)."""
    honest = torch.tensor([[3.0, 1.0], [1.0, 5.0], [7.0, 7.0]])
    base = torch.ones(3, 2)
    assert Ipm(epsilon=0.5).message(scene(honest, [2], base))[2].tolist() == [0.5, 0.0]
    assert Ipm(epsilon=0.5, knowledge="self").message(scene(honest, [2], base))[2].tolist() == [-2, -2]
    own = Ipm(epsilon=0.5, knowledge="coalition").message(scene(honest, [0, 1], base))
    assert own.tolist() == [[0.5, 0.0], [0.5, 0.0], [7.0, 7.0]]


def test_who_is_silent_is_not_known():
    honest = torch.tensor([[2.0], [100.0], [0.0]])
    assert Ipm(epsilon=1).message(scene(honest, [2], silent=(1,)))[2].item() == -2


def test_alie_by_hand():
    """Honest (1, 0) and (3, 4): mean (2, 2), deviation of the population (1, 2)."""
    honest = torch.tensor([[1.0, 0.0], [3.0, 4.0], [9.0, 9.0], [9.0, 9.0]])
    sent = Alie(z=1.5).message(scene(honest, [2, 3]))
    assert sent[2:].tolist() == [[0.5, -1.0]] * 2
    own = Alie(z=2, knowledge="coalition").message(scene(honest, [0, 1]))
    assert own[:2].tolist() == [[0.0, -2.0]] * 2


def test_the_deviation_of_the_paper():
    """n = 50, f = 24: s = 26 - 24 = 2, z = Phi^-1(24/26) = 1.43; n = 25, f = 5: Phi^-1(12/20)."""
    assert math.isclose(deviation(50, 24), NormalDist().inv_cdf(24 / 26))
    assert abs(deviation(50, 24) - 1.43) < 0.005
    assert math.isclose(deviation(25, 5), NormalDist().inv_cdf(12 / 20))
    assert deviation(5, 1) == 0
    assert all(math.isfinite(deviation(n, f)) for n in range(2, 12) for f in range(1, n))
    honest = normal(0, 25, 4)
    expected = honest[5:].mean(0) - deviation(25, 5) * honest[5:].std(0, correction=0)
    torch.testing.assert_close(Alie().message(scene(honest, list(range(5))))[0], expected)


def test_noise_has_its_deviation_and_differs_between_peers():
    honest, base = normal(0, 4, 20000), normal(1, 4, 20000)
    here = scene(honest, [1, 2], base)
    added = Noise(sigma=2).message(here)[1:3] - honest[1:3]
    assert float((added.std(1) - 2).abs().max()) < 0.05
    assert float(added.mean(1).abs().max()) < 0.06
    assert abs(float(torch.corrcoef(added)[0, 1])) < 0.03
    alone = Random(sigma=2).message(here)[1:3]
    torch.testing.assert_close(alone - base[1:3], added)
    assert torch.equal(alone, Noise(sigma=2, alone=True).message(here)[1:3])


def test_a_peer_draws_the_same_noise_whoever_else_is_hostile():
    honest = normal(0, 6, 7)
    some, many = Noise().message(scene(honest, [4])), Noise().message(scene(honest, [1, 4, 5]))
    assert torch.equal(some[4], many[4])


def test_nan_is_all_nan():
    sent = Nan().message(scene(normal(0, 3, 4), [0]))
    assert sent.isnan().all(1).tolist() == [True, False, False]


def test_model_replacement_by_hand():
    honest = torch.tensor([[1.0], [4.0]])
    sent = Backdoor(scale=2).message(scene(honest, [1], torch.ones(2, 1)))
    assert sent.tolist() == [[1.0], [7.0]]
    # n times the update replaces the mean of n that otherwise agree with the base.
    assert (sent - 1).mean().item() == 3.0
    assert Backdoor().message(scene(honest, [1])).tolist() == honest.tolist()


# -- data ----------------------------------------------------------------------------------------------


def batch(shape: tuple[int, ...], peers: int = 3, size: int = 8, classes: int = 4):
    x = 0.5 * torch.ones(peers, size, *shape)
    y = torch.arange(peers * size).reshape(peers, size) % classes
    return x, y, torch.tensor([False, True, False]), Draws(0, "poison", torch.arange(peers), 0)


def test_label_flip_by_hand():
    x, y, hostile, draws = batch((2,))
    same, wrong = LabelFlip().batch(x, y, hostile, draws, 4)
    assert torch.equal(same, x)
    assert torch.equal(wrong[[0, 2]], y[[0, 2]])
    assert wrong[1].tolist() == [3, 2, 1, 0, 3, 2, 1, 0]
    _, wrong = LabelFlip(source=2, target=0).batch(x, y, hostile, draws, 4)
    assert torch.equal(wrong[[0, 2]], y[[0, 2]])
    assert wrong[1].tolist() == [0, 1, 0, 3, 0, 1, 0, 3]
    assert y[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_label_flip_is_probed_where_it_has_a_target():
    x, y = normal(0, 6, 2), torch.tensor([0, 1, 2, 1, 0, 2])
    assert LabelFlip().probe(x, y, 3) is None
    probe = LabelFlip(source=1, target=2).probe(x, y, 3)
    assert probe is not None
    inputs, labels, target = probe
    assert torch.equal(inputs, x[[1, 3]])
    assert labels.tolist() == [1, 1]
    assert target == 2


@pytest.mark.parametrize("shape", [(5, 5), (2, 5, 5), (25,), (13,)])
def test_backdoor_marks_the_last_corner(shape):
    x, y, hostile, draws = batch(shape)
    seen, labels = Backdoor(size=2, value=9.0, target=3, fraction=1.0).batch(x, y, hostile, draws, 4)
    assert torch.equal(seen[[0, 2]], x[[0, 2]])
    assert torch.equal(labels[[0, 2]], y[[0, 2]])
    assert labels[1].tolist() == [3] * 8
    expected = torch.full(shape, 0.5)
    if shape == (13,):
        expected[-4:] = 9.0
    else:
        expected.view(-1, 5, 5)[:, 3:, 3:] = 9.0
    assert torch.equal(seen[1], expected.expand(8, *shape))
    assert float(x.max()) == 0.5


def test_backdoor_poisons_the_given_share_by_the_peers_own_draws():
    x, y, _, draws = batch((9,), size=4000)
    hostile = torch.ones(3, dtype=torch.bool)
    attack = Backdoor(fraction=0.3, target=1, value=2.0)
    seen, labels = attack.batch(x, y, hostile, draws, 4)
    marked = (seen == 2).all(2)
    assert float((marked.double().mean(1) - 0.3).abs().max()) < 0.04
    assert torch.equal(labels, torch.where(marked, 1, y))
    alone = Draws(0, "poison", torch.tensor([2]), 0)
    one, _ = attack.batch(x[2:], y[2:], hostile[2:], alone, 4)
    assert torch.equal(one[0], seen[2])
    assert not torch.equal(marked[0], marked[1])


def test_backdoor_is_probed_on_the_other_classes():
    x, y = torch.zeros(5, 3, 3), torch.tensor([0, 1, 2, 0, 1])
    inputs, labels, target = Backdoor(size=1, target=1).probe(x, y, 3)
    assert labels.tolist() == [0, 2, 0]
    assert target == 1
    assert inputs.sum((1, 2)).tolist() == [1.0] * 3
    assert inputs[:, 2, 2].tolist() == [1.0] * 3
    assert float(x.abs().max()) == 0


@pytest.mark.parametrize(
    ("attack", "shape", "classes", "field"),
    [(Backdoor(size=4), (3, 3), 4, "size"), (Backdoor(size=4), (9,), 4, "size"),
     (Backdoor(size=4), (15,), 4, "size"), (Backdoor(), (1, 2, 9, 9), 4, "size"),
     (Backdoor(target=4), (9,), 4, "target"), (LabelFlip(source=0, target=4), (9,), 4, "target"),
     (LabelFlip(source=7, target=1), (9,), 4, "source")],
)  # fmt: skip
def test_attacks_that_do_not_fit_the_data_are_refused(attack, shape, classes, field):
    x, y, hostile, draws = batch(shape)
    with pytest.raises(BadInput) as error:
        attack.batch(x, y, hostile, draws, classes)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [("sign-flip(scale=0)", "sign-flip.scale"), ("noise(sigma=-1)", "noise.sigma"),
     ("ipm(epsilon=0)", "ipm.epsilon"), ('ipm(knowledge="all")', "ipm.knowledge"),
     ('alie(knowledge="self")', "alie.knowledge"), ("label-flip(source=1)", "label-flip.target"),
     ("label-flip(source=1, target=1)", "label-flip.target"), ("backdoor(fraction=0)", "backdoor.fraction"),
     ("backdoor(size=0)", "backdoor.size"), ("backdoor(target=-1)", "backdoor.target")],
)  # fmt: skip
def test_bad_values_are_named(spec, field):
    with pytest.raises(BadInput) as error:
        attacks(spec)
    assert error.value.field == field


def test_names_and_what_they_touch():
    assert attacks("lie") == Alie()
    assert attacks("random") == Random()
    assert Random().sigma == Noise().sigma
    poisoning = {spec for spec in [*SPOKEN, "label-flip", "backdoor"] if attacks(spec).poisons_data}
    assert poisoning == {"label-flip", "backdoor", "backdoor(scale=10)"}


# -- they work against plain averaging -----------------------------------------------------------------


def descend(spec: str | None, f: int, steps: int = 150, n: int = 20) -> float:
    """Distance to the optimum of the honest peers' quadratics |x - b_i|^2 / 2 under averaged gradients,
    each with noise of its own."""
    target, x = normal(0, n, 10), torch.full((10,), 5.0, dtype=torch.float64)
    attack = attacks(spec) if spec else None
    honest = target[f:].mean(0)
    for t in range(steps):
        gradient = x - target + normal(t + 1, n, 10)
        sent = gradient[f:] if attack is None else attack.message(scene(gradient, list(range(f))))
        x = x - 0.1 * sent.mean(0)
    return float((x - honest).norm())


@pytest.mark.parametrize(
    ("spec", "f"),
    [("sign-flip(scale=5)", 5), ("random(sigma=100)", 5), ("noise(sigma=100)", 5), ("alie(z=3)", 8),
     ("ipm(epsilon=10)", 5)],
)  # fmt: skip
def test_an_attack_keeps_plain_averaging_from_the_optimum(spec, f):
    assert descend(None, f) < 0.5
    assert descend(spec, f) > 3 * descend(None, f)


def learn(attack: LabelFlip | Backdoor | None, hostile: int = 3, n: int = 6) -> tuple[float, float]:
    """(accuracy, attack success) of averaged softmax regression on four blobs in 16 features."""
    classes, dim = 4, 16
    means = torch.zeros(classes, dim, dtype=torch.float64)
    means[torch.arange(classes), torch.arange(classes)] = 2.0

    def draw(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(math.prod(shape)).reshape(shape) % classes
        return means[y] + 0.3 * normal(seed, *shape, dim), y

    bad = torch.arange(n) < hostile
    w = torch.zeros(n, dim, classes, dtype=torch.float64)
    x, y = draw(0, n, 100)
    if attack is not None:
        x, y = attack.batch(x, y, bad, Draws(0, "poison", torch.arange(n), 0), classes)
    known = w
    for _ in range(60):
        wrong = torch.softmax(x @ w, 2) - torch.nn.functional.one_hot(y, classes)
        sent = w - x.mT @ wrong / 100
        if attack is not None:
            flat = attack.message(scene(sent.flatten(1), list(range(hostile)), known.flatten(1)))
            sent = flat.reshape(n, dim, classes)
        w = known = sent.mean(0).expand(n, -1, -1)
    x, y = draw(1, 400)
    right = float(((x @ w[0]).argmax(1) == y).double().mean())
    probe = attack.probe(x, y, classes) if attack is not None else None
    if probe is None:
        return right, 0.0
    return right, float(((probe[0] @ w[0]).argmax(1) == probe[2]).double().mean())


def test_data_attacks_succeed_against_plain_averaging():
    assert learn(None)[0] > 0.95
    assert learn(LabelFlip(), hostile=4)[0] < 0.2
    assert learn(LabelFlip(source=1, target=2), hostile=4)[1] > 0.8
    right, success = learn(Backdoor(size=2, value=4.0, target=3, fraction=0.5))
    assert right > 0.9
    assert success > 0.9
    assert learn(Backdoor(size=2, value=4.0, target=3), hostile=0)[1] < 0.4


def test_scaling_a_backdoor_makes_one_attacker_enough():
    weak = Backdoor(size=2, value=0.5, target=3)
    assert learn(weak, hostile=1)[1] < 0.4
    right, success = learn(weak.replace(scale=6), hostile=1)
    assert success > 0.8
    assert right > 0.9
