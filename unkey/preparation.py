"""What must be true before the processes start: schema, regions, certificates. Safe to repeat."""

from django.core.management import call_command

from unkey.env import env


def prepare() -> None:
    """Bring the database to this code's schema and make what every installation has.

    Raises:
        django.core.management.base.SystemCheckError: the database is not one that this code can use.
        django.db.DatabaseError: the database cannot be reached or written.
        OSError: UNKEY_VAR cannot be written.
    """
    from apps.certs import services as certs
    from apps.cluster import services as cluster

    for name in ("SECRET_KEY", "AGENT_TOKEN", "VAULT_MASTER_KEY"):
        env.secret(name)
    call_command("migrate", interactive=False, verbosity=0, skip_checks=False)
    for region in env.REGIONS or (env.REGION,):
        cluster.ensure_region(region)
    certs.ensure_default_certificates()
