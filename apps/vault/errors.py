"""What can go wrong in the vault. No message ever holds a plaintext or a key."""


class VaultError(Exception):
    """The vault cannot do what was asked."""


class Undecryptable(VaultError):
    """A value is malformed, was changed, or belongs to another key ring."""


class InvalidKeyring(VaultError):
    """A key ring has a name that no ring may have."""


class InvalidPlaintext(VaultError):
    """A plaintext is no valid Unicode text."""


class UnknownMasterKey(VaultError):
    """A data key is wrapped by a key-encryption key that this vault was not given."""


class VaultUnavailable(VaultError):
    """The object store, or the vault process, does not answer."""


BY_NAME = {
    kind.__name__: kind
    for kind in (Undecryptable, InvalidKeyring, InvalidPlaintext, UnknownMasterKey, VaultUnavailable)
}
"""Typed errors by name: a vault process tells its callers which one it was."""
