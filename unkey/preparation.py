"""What must be true before the processes start: schema, regions, certificates. Safe to repeat."""

from django.core.checks import Tags
from django.core.management import call_command
from django.core.management.commands.migrate import Command as Migrate
from django.db import DEFAULT_DB_ALIAS

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
    # Of Django's checks those of the database; the others would import every page of web, at each start.
    migrate = Migrate()
    migrate.check(tags=[Tags.database], databases=[DEFAULT_DB_ALIAS])
    call_command(migrate, interactive=False, verbosity=0, skip_checks=True)
    for region in env.REGIONS or (env.REGION,):
        cluster.ensure_region(region)
    certs.ensure_default_certificates()
