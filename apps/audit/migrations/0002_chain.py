"""The chain of each workspace's audit rows, what changed in each, and the triggers that keep them."""

import django.db.models.deletion
from django.db import migrations, models

from apps.audit import guard


def install(apps, schema_editor):
    guard.install(schema_editor.connection)


def remove(apps, schema_editor):
    guard.remove(schema_editor.connection)


class Migration(migrations.Migration):
    # MySQL commits at every change of a table: there is nothing that could be taken back as a whole.
    dependencies = [("audit", "0001_initial"), ("workspaces", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="auditlog",
            name="changes",
            field=models.JSONField(
                default=dict, editable=False, help_text="field to its value before and after"
            ),
        ),
        migrations.AddField(
            model_name="auditlog",
            name="sequence",
            field=models.BigIntegerField(editable=False, help_text="place in the chain, from 1", null=True),
        ),
        migrations.AddField(
            model_name="auditlog",
            name="hash",
            field=models.CharField(blank=True, default="", editable=False, max_length=64),
            preserve_default=False,
        ),
        migrations.AddIndex(
            model_name="auditlog",
            index=models.Index(fields=["sequence", "workspace"], name="audit_unsealed"),
        ),
        migrations.AddConstraint(
            model_name="auditlog",
            constraint=models.UniqueConstraint(fields=("workspace", "sequence"), name="audit_place"),
        ),
        migrations.CreateModel(
            name="AuditChain",
            fields=[
                (
                    "workspace",
                    models.OneToOneField(
                        editable=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to="workspaces.workspace",
                    ),
                ),
                (
                    "sequence",
                    models.BigIntegerField(default=0, editable=False, help_text="of the last sealed row"),
                ),
                (
                    "hash",
                    models.CharField(
                        blank=True, editable=False, help_text="of the last sealed row", max_length=64
                    ),
                ),
                (
                    "pruned",
                    models.BigIntegerField(default=0, editable=False, help_text="rows up to here are gone"),
                ),
                (
                    "anchor",
                    models.CharField(
                        blank=True, editable=False, help_text="hash of the last of them", max_length=64
                    ),
                ),
                ("sealed_at", models.DateTimeField(editable=False, null=True)),
            ],
        ),
        migrations.RunPython(install, remove),
    ]
