import django.db.models.deletion
from django.db import migrations, models

import unkey.clock


class Migration(migrations.Migration):
    dependencies = [
        ("deployments", "0008_report_order"),
        ("projects", "0003_environment_deleting_at"),
        ("workspaces", "0003_suspension"),
    ]

    operations = [
        migrations.CreateModel(
            name="Suspension",
            fields=[
                (
                    "app",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="suspension",
                        serialize=False,
                        to="projects.app",
                    ),
                ),
                ("created_at", models.DateTimeField(default=unkey.clock.now)),
                (
                    "deployment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="deployments.deployment",
                    ),
                ),
                (
                    "workspace",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="workspaces.workspace",
                    ),
                ),
            ],
        ),
    ]
