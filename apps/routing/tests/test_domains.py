"""Generated host names: their forms, their lengths, what tells them apart."""

import re

from hypothesis import given
from hypothesis import strategies as st

from apps.routing.domains import Domain, Names, apart, generated, label, slug
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
