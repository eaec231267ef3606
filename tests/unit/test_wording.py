from autoscale.wording import interval, listed, number_word, probability, signed


def test_differences_carry_their_sign_and_nothing_is_plain():
    assert signed(0.25) == "+0.2500"
    assert signed(-0.25, 2) == "\N{MINUS SIGN}0.25"
    assert signed(-0.00001) == "0.0000"
    assert interval(-0.5, 0.25, 2) == "\N{MINUS SIGN}0.50 to +0.25"


def test_names_are_listed_as_in_a_sentence():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_small_counts_are_words():
    assert [number_word(count) for count in (0, 3, 12)] == ["No", "Three", "12"]


def test_a_probability_is_never_rounded_to_certainty():
    assert probability(0.9999) == "> 0.99"
    assert probability(0.0001) == "< 0.01"
    assert probability(0.947) == "0.95"
