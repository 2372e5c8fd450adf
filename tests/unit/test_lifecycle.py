"""Lifecycle rules: what is in them, what never is, and that what they cannot say is said. `tests/contract` gives them to servers."""

from __future__ import annotations

import pytest

from coldstore.errors import ConfigError
from coldstore.lifecycle import MARGIN_DAYS, rules
from coldstore.retention import Policy


@pytest.mark.parametrize(
    ("url", "kind", "prefix"),
    [("s3://b", None, ""), ("s3://b/a/b/", None, "a/b/"), ("s3a://b/x", None, "x/"), ("folder", "s3", ""), ("gs://b/x", "s3", "x/")],
)
def test_s3(url, kind, prefix):
    assert rules(url, kind).configuration == {
        "Rules": [
            {
                "ID": "coldstore-uploads",
                "Filter": {"Prefix": prefix},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
                "Status": "Enabled",
            },
            {
                "ID": "coldstore-noncurrent",
                "Filter": {"Prefix": prefix},
                "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
                "Status": "Enabled",
            },
        ]
    }


def test_gcs():
    found = rules("gs://b/agents", policy=Policy(days=7, labels=False)).configuration
    assert found == {
        "lifecycle": {
            "rule": [
                {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": {"age": 2, "matchesPrefix": ["agents/"]}},
                {"action": {"type": "Delete"}, "condition": {"daysSinceNoncurrentTime": 30, "matchesPrefix": ["agents/"]}},
                {
                    "action": {"type": "Delete"},
                    "condition": {"age": 7 + MARGIN_DAYS, "isLive": True, "matchesPrefix": ["agents/snapshots/"]},
                },
            ]
        }
    }
    assert "matchesPrefix" not in str(rules("gs://b").configuration)


@pytest.mark.parametrize("kind", ["s3", "gcs"])
@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (None, "floor"),
        (Policy(last=3, days=9, labels=False), "last"),
        (Policy(daily=3, weekly=1, labels=False), "daily, weekly"),
        (Policy(days=3), "label"),
    ],
)
def test_nothing_expires_that_an_age_cannot_tell(kind, policy, why):
    found = rules("s3://b/p", kind, policy=policy)
    assert found.configuration == rules("s3://b/p", kind).configuration
    assert why in found.notes[-1]
    assert "snapshots/" not in str(found.configuration)


def test_expiry_comes_later_than_the_policy_and_says_what_it_does_not_know():
    found = rules("s3://b/p", policy=Policy(days=30, labels=False))
    rule = found.configuration["Rules"][-1]
    assert (rule["Filter"], rule["Expiration"]) == ({"Prefix": "p/snapshots/"}, {"Days": 60})
    assert "floor" in found.notes[-1]


def test_what_has_no_rules():
    for url, kind in (("folder", None), ("memory://x", None), ("s3://b", "azure")):
        with pytest.raises(ConfigError) as caught:
            rules(url, kind)
        assert "--format" in caught.value.hint
