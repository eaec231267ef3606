"""ADO's laws against known ones, its weights against their fixed point, and quotas under caps."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoscale.methods.ado import ADO, LivePolicy, at_least, capped_quotas
from autoscale.methods.domain_laws import fit_domain_law, slopes, smoothed
from tests.unit.test_runs import make_spec


def law(epsilon, beta, alpha):
    return np.array([np.log(beta), np.log(epsilon), alpha])


def losses_of(parameters, samples):
    a, e, alpha = parameters
    return np.exp(e) + np.exp(a) * samples**-alpha


LAWS = [law(2.0, 8.0, 0.3), law(1.8, 20.0, 0.6), law(3.0, 5.0, 0.15)]
SAMPLES = np.arange(50, 1001) * 32.0


@pytest.mark.parametrize("known", LAWS)
def test_a_law_without_noise_is_found(known):
    found = fit_domain_law(SAMPLES, losses_of(known, SAMPLES))
    assert losses_of(found, SAMPLES) == pytest.approx(losses_of(known, SAMPLES), rel=1e-4)
    later = SAMPLES[-1] * 4
    assert slopes([found], later) == pytest.approx(slopes([known], later), rel=0.02)


def test_noise_and_outliers_move_the_slope_little():
    rng = np.random.default_rng(1)
    known = LAWS[0]
    noisy = losses_of(known, SAMPLES) * np.exp(0.01 * rng.standard_normal(len(SAMPLES)))
    noisy[::97] *= 1.5
    found = fit_domain_law(SAMPLES, noisy)
    assert slopes([found], 32e3) == pytest.approx(slopes([known], 32e3), rel=0.25)


def test_a_low_loss_may_have_a_low_floor():
    """The authors' bound of exp(0.5) nats would lie above these losses."""
    known = law(0.6, 3.0, 0.4)
    found = fit_domain_law(SAMPLES, losses_of(known, SAMPLES))
    assert losses_of(found, SAMPLES) == pytest.approx(losses_of(known, SAMPLES), rel=1e-3)


def test_slopes_are_the_derivatives():
    n = 5000.0
    for known in LAWS:
        rise = (losses_of(known, n * 1.001) - losses_of(known, n * 0.999)) / (0.002 * n)
        assert slopes([known], n) == pytest.approx([-rise], rel=1e-5)


def test_a_flat_exponent_counts_as_a_twentieth():
    flat = law(2.0, 8.0, 0.01)
    assert slopes([flat], 100.0) == pytest.approx([0.05 * 8.0 * 100**-0.01 / 100])


def test_the_filter_keeps_cubics_and_short_histories():
    cubic = np.linspace(-1, 1, 400) ** 3 + 5
    assert smoothed(cubic) == pytest.approx(cubic)
    noisy = cubic + 0.1 * np.random.default_rng(0).standard_normal(400)
    assert np.abs(smoothed(noisy) - cubic).mean() < 0.5 * np.abs(noisy - cubic).mean()
    short = np.array([3.0, 2.0, 5.0])
    assert smoothed(short).tolist() == short.tolist()


def settings(**changes):
    return ADO().changes(1000, max_epochs=4.0)["online"] | changes


def make_policy(prior, **changes):
    return LivePolicy(settings(**changes), prior, samples_per_step=8)


def history(laws, num_steps):
    samples = 8.0 * np.arange(1, num_steps + 1)
    return samples, np.stack([losses_of(each, samples) for each in laws], axis=1)


def test_domains_alike_keep_the_prior():
    policy = make_policy([0.5, 0.5])
    policy.fit(*history([LAWS[0], LAWS[0]], 300))
    assert policy.advance(300, 100) == pytest.approx([0.5, 0.5])


def test_without_losses_the_prior_stays():
    policy = make_policy([3, 1])
    assert policy.advance(100, 50) == pytest.approx([0.75, 0.25])


def test_the_first_step_by_hand():
    """h and the mean are the prior still; the preference enters with gamma_2."""
    prior = np.array([0.6, 0.3, 0.1])
    policy = make_policy(prior, least_weight=0.0)
    policy.fit(*history(LAWS, 300))
    preference = prior * prior**0.5 * slopes(LAWS, 8 * 300)
    preference /= preference.sum()
    assert policy.advance(300, 1) == pytest.approx(0.1 * preference + 0.9 * prior, rel=5e-3)


def test_the_weights_tend_to_their_fixed_point():
    """With slopes of constant ratio d, pi = mean = h = rho give pi ~ (mu d)^(1 / (1 - s))."""
    prior = np.array([0.5, 0.3, 0.2])
    laws = [law(2.0, beta, 0.3) for beta in (4.0, 6.0, 8.0)]
    policy = make_policy(prior)
    policy.fit(*history(laws, 300))
    policy.advance(20, 20_000)
    expected = (prior * [4.0, 6.0, 8.0]) ** 2
    assert policy.advance(20_020, 1) == pytest.approx(expected / expected.sum(), abs=0.02)


def test_a_domain_that_falls_faster_gets_more_and_none_less_than_the_least():
    flat, steep = law(2.0, 0.01, 0.5), law(2.0, 20.0, 0.5)
    policy = make_policy([0.5, 0.5], policy_rate=1.0)
    policy.fit(*history([flat, steep], 300))
    weights = policy.advance(300, 1)
    assert weights[0] == pytest.approx(0.01, rel=0.02) and weights[1] > 0.98


def test_a_domain_outside_the_prior_stays_outside():
    policy = make_policy([0.5, 0.5, 0.0])
    samples, losses = history(LAWS, 300)
    losses[:, 2] = np.nan
    policy.fit(samples, losses)
    weights = policy.advance(300, 10)
    assert weights[2] == 0 and weights.sum() == pytest.approx(1)


def test_records_without_a_domain_take_the_one_before():
    samples, losses = history(LAWS[:1], 300)
    holes = np.where(np.arange(300)[:, None] % 7 == 3, np.nan, losses)
    holes[0] = np.nan
    full, with_holes = make_policy([1.0]), make_policy([1.0])
    full.fit(samples, losses)
    with_holes.fit(samples, holes)
    known, found = (np.array(each.state()["laws"][0]) for each in (full, with_holes))
    assert losses_of(found, samples) == pytest.approx(losses_of(known, samples), rel=1e-2)


def test_ignored_steps_do_not_count():
    samples, losses = history(LAWS[:1], 300)
    spoilt = losses.copy()
    spoilt[:100] = 50.0
    policy = make_policy([1.0], ignored_steps=150)
    policy.fit(samples, spoilt)
    found = np.array(policy.state()["laws"][0])
    assert losses_of(found, samples[200:]) == pytest.approx(losses[200:, 0], rel=1e-3)


def test_a_state_goes_on_exactly():
    whole, first, second = (make_policy([0.6, 0.3, 0.1]) for _ in range(3))
    for policy in (whole, first):
        policy.fit(*history(LAWS, 300))
        policy.advance(300, 20)
    second.restore(json.loads(json.dumps(first.state())))
    for policy in (whole, second):
        policy.fit(*history(LAWS, 320))
    assert second.advance(320, 20).tolist() == whole.advance(320, 20).tolist()
    assert second.state() == whole.state()


def test_at_least_is_one_normalisation():
    assert at_least([98.0, 1.5, 0.5], 0.01) == pytest.approx(np.array([0.98, 0.015, 0.01]) / 1.005)


quotas = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 50)), min_size=1, max_size=6)


@given(quotas, st.floats(0, 1))
def test_quotas_are_whole_exact_and_never_above_what_is_left(domains, part):
    weights, most = (np.array(each) for each in zip(*domains, strict=True))
    assume(most.sum() > 0)
    total = max(1, int(part * most.sum()))
    found = capped_quotas(weights, total, most)
    assert found.sum() == total
    assert (found >= 0).all() and (found <= most).all()


def test_what_a_domain_cannot_give_goes_to_the_others_in_proportion():
    assert capped_quotas([0.5, 0.3, 0.2], 100, [20, 1000, 1000]).tolist() == [20, 48, 32]
    assert capped_quotas([0.5, 0.3, 0.2], 100, [1000, 1000, 1000]).tolist() == [50, 30, 20]
    assert capped_quotas([1.0, 0.0, 0.0], 100, [40, 90, 30]).tolist() == [40, 45, 15]


def test_the_published_shares_of_a_run_and_short_runs():
    long = ADO().changes(60_000, max_epochs=1.0)["online"]
    assert (long["round_steps"], long["warm_up_steps"], long["ignored_steps"]) == (1000, 1000, 500)
    short = ADO().changes(200, max_epochs=1.0)["online"]
    assert (short["round_steps"], short["warm_up_steps"], short["ignored_steps"]) == (10, 50, 25)


def test_a_live_run_is_another_run():
    spec = make_spec()
    live = replace(spec, **ADO().changes(spec.num_steps, max_epochs=4.0))
    assert live.identity != spec.identity and live.online["method"] == "ado"
    read = type(spec).from_dict(live.to_dict())
    assert (read.online, read.identity) == (live.online, live.identity)
