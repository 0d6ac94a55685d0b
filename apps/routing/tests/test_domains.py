"""Generated host names: their forms, their lengths, what tells them apart."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.routing.domains import Domain, Names, apart, generated, is_local, label, slug
from apps.routing.models import FrontlineRoute

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
Sticky = FrontlineRoute.Sticky


def names(**changes: object) -> Names:
    given: dict[str, object] = {
        "workspace": "acme",
        "project": "shop",
        "app": "default",
        "environment": "production",
        "deployment": "d_4kWxYz",
        "production": True,
        "commit": "",
        "branch": "",
        "fork": "",
        "from_cli": False,
        "apex": "unkey.localhost",
    }
    return Names(**(given | changes))  # type: ignore[arg-type]


def hosts(**changes: object) -> dict[str, str]:
    return {
        domain.fqdn.removesuffix(".unkey.localhost"): str(domain.sticky)
        for domain in generated(names(**changes), "env_1")
    }


def test_an_image_in_production_gets_three_names() -> None:
    assert hosts() == {
        "shop-production-acme": "environment",
        "shop-acme": "live",
        "shop-d-4kwxyz-acme": "deployment",
    }


def test_a_commit_on_a_branch_gets_two_more() -> None:
    assert hosts(app="api", commit="ABCDEF0123", branch="feature/Log In", production=False) == {
        "shop-api-git-abcdef0-acme": "none",
        "shop-api-git-feature-log-in-acme": "branch",
        "shop-api-production-acme": "environment",
        "shop-api-d-4kwxyz-acme": "deployment",
    }


def test_the_cli_deploys_one_commit_under_a_name_of_its_own_each_time() -> None:
    assert "shop-git-abcdef0-wxyz-acme" in hosts(commit="abcdef0123", from_cli=True)


def test_a_fork_says_whose_it_is() -> None:
    assert "shop-fork-ada-l-acme" in hosts(fork="Ada_L/shop")


def test_a_long_label_is_cut_and_keeps_a_hash_of_the_whole() -> None:
    long = label("x" * 70 + "-acme")
    assert len(long) == 63
    assert long == "x" * 54 + "-" + long[-8:]
    assert label("x" * 70 + "-other")[-8:] != long[-8:]
    assert label("y" * 63) == "y" * 63


def test_a_cut_never_leaves_two_hyphens() -> None:
    assert "--" not in label("x" * 53 + "-" + "y" * 20)


def test_a_text_without_letters_still_names_something() -> None:
    assert slug("/// 火") == slug("/// 火")
    assert LABEL.fullmatch(slug("/// 火"))
    assert slug("///") != slug("..")


def test_a_name_that_is_taken_has_a_stable_alternative_of_the_same_kind() -> None:
    taken = Domain("shop-acme.unkey.localhost", Sticky.LIVE, "env_1 live ")
    other = apart(taken)
    assert other == apart(taken)
    assert other.fqdn.startswith("shop-acme-")
    assert other.fqdn != apart(Domain(taken.fqdn, Sticky.LIVE, "env_2 live ")).fqdn
    assert other.sticky == Sticky.LIVE


@pytest.mark.parametrize(
    ("fqdn", "local"),
    [
        ("localhost", True),
        ("shop.local", True),
        ("a.b.test", True),
        ("shop.unkey.localhost", False),  # the installation's own domain
        ("unkey.localhost", False),
        ("shop.localhost", False),
        ("local", False),
        ("test", False),
        ("mylocal", False),
        ("shop.local.example.com", False),
        ("notlocalhost", False),
        ("example.com", False),
    ],
)
def test_names_of_one_machine_are_told_from_public_ones(fqdn: str, local: bool) -> None:
    assert is_local(fqdn, "unkey.localhost") is local


def test_an_installations_own_domain_is_never_local() -> None:
    assert not is_local("shop-acme.unkey.test", "unkey.test")
    assert is_local("other.test", "unkey.test")


@given(
    workspace=st.text(min_size=1, max_size=64),
    project=st.text(min_size=1, max_size=255),
    app=st.text(min_size=1, max_size=255),
    environment=st.text(min_size=1, max_size=255),
    branch=st.text(max_size=256),
    commit=st.text("0123456789abcdef", max_size=40),
    fork=st.text(max_size=60),
)
def test_every_label_can_be_looked_up_in_dns(**texts: str) -> None:
    for domain in generated(names(**texts), "env_1"):
        for form in (domain, apart(domain)):
            first, _, rest = form.fqdn.partition(".")
            assert LABEL.fullmatch(first), first
            assert rest == "unkey.localhost"
            assert len(form.fqdn) <= 253


@given(st.lists(st.text(max_size=90), min_size=2, max_size=2, unique=True), st.booleans())
def test_texts_that_are_written_alike_get_alternatives_that_differ(
    texts: list[str], production: bool
) -> None:
    """Whoever comes second gets the same name apart: never the first one's, and the same each time."""
    mine, theirs = (
        {str(d.sticky): d for d in generated(names(branch=text, production=production), f"env_{text}")}
        for text in texts
    )
    for sticky in mine.keys() & theirs.keys():
        assert apart(mine[sticky]) == apart(mine[sticky])
        if mine[sticky].owner != theirs[sticky].owner:
            assert apart(mine[sticky]).fqdn != apart(theirs[sticky]).fqdn
            assert apart(mine[sticky]).fqdn != theirs[sticky].fqdn


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_long_name_is_cut_stably_and_keeps_what_told_it_apart(first: str, second: str) -> None:
    written = [slug(f"x{text}") for text in (first, second)]
    cut = [label(text) for text in written]
    assert cut == [label(text) for text in written]
    assert (cut[0] == cut[1]) == (written[0] == written[1])
    for text in cut:
        assert LABEL.fullmatch(text)
