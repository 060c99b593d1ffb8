"""The people of the security tests, and what one of them owns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.security.support import Operator, Person, Strangers, Tenant, populate


@dataclass
class World:
    """Who wants to get at `tenant.owner`'s things."""

    operator: Operator
    tenant: Tenant
    guest: Person  # a viewer of the same tenant, with a grant
    bystander: Person  # a viewer of the same tenant, without one
    colleague: Person  # a developer of the same tenant, without a grant
    helper: Person  # a developer of the same tenant, with a viewer's grant
    foreigner: Person  # a developer of another tenant
    foreign_admin: Person  # an admin of another tenant
    bad_keys: dict[str, str | None]  # by why they are bad


@pytest.fixture(scope="session")
def operator(gateway: Any) -> Iterator[Operator]:
    made = Operator(gateway.url, gateway.admin_key)
    yield made
    made.close()


@pytest.fixture(scope="session")
def world(operator: Operator) -> Iterator[World]:
    """One populated tenant, and everybody who is not its owner."""
    guest = operator.person("security-a", "viewer", "guest")
    for tenant in populate(operator, "security-a", guest):
        helper = operator.person("security-a", "developer", "helper")
        grant = {"sandboxId": tenant.sandbox, "userId": helper.id, "level": "viewer"}
        tenant.owner.client.made("POST", "/api/v1/grants", grant)
        yield World(
            operator=operator,
            tenant=tenant,
            guest=guest,
            bystander=operator.person("security-a", "viewer", "bystander"),
            colleague=operator.person("security-a", "developer", "colleague"),
            helper=helper,
            foreigner=operator.person("security-b", "developer", "foreigner"),
            foreign_admin=operator.person("security-b", "admin", "foreign-admin"),
            bad_keys={
                "no key": None,
                "garbage": "garbage",
                "a made-up key": f"lsp_{'0' * 16}_{'f' * 64}",
                "a wrong secret": f"lsp_{tenant.owner.key_id}_{'a' * 64}",
                "revoked": operator.revoked_key(tenant.owner.id),
                "expired": operator.expired_key(tenant.owner.id),
            },
        )


@pytest.fixture(scope="session")
def strangers(gateway: Any) -> Iterator[Strangers]:
    """Requests with bad keys."""
    made = Strangers(gateway.url)
    yield made
    made.close()


@pytest.fixture(scope="session")
def harassed(operator: Operator) -> Iterator[Tenant]:
    """Somebody with one of everything, all of whose requests are wrong."""
    yield from populate(operator, "bad-input", operator.person("bad-input", "viewer"))


@pytest.fixture(scope="session")
def meddler(harassed: Tenant, operator: Operator) -> Person:
    """An admin of the same tenant: nothing is refused for a lack of rights."""
    return operator.person("bad-input", "admin")
