"""Kubernetes' own types of which the operator reads more than the metadata, beside pods (in types.py)."""

from __future__ import annotations

from llmsafespace_operator.resources.types import Metadata, Object


class Secret(Object):
    """A Secret; base64 is JSON's affair."""

    metadata: Metadata
    data: dict[str, bytes] = {}


class WebhookClientConfig(Object):
    """How a webhook is called; `ca_bundle` is PEM."""

    ca_bundle: bytes = b""


class Webhook(Object):
    """One of the webhooks of a configuration."""

    name: str
    client_config: WebhookClientConfig


class WebhookConfiguration(Object):
    """A ValidatingWebhookConfiguration."""

    metadata: Metadata
    webhooks: list[Webhook] = []
