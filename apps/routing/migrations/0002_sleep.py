from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("routing", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="sentinel",
            name="last_request_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="when an edge last told of requests to it",
                null=True,
            ),
        ),
        migrations.AlterField(
            model_name="sentinel",
            name="desired_state",
            field=models.CharField(
                choices=[
                    ("running", "Running"),
                    ("stopped", "Stopped"),
                    ("standby", "Standby"),
                    ("waking", "Waking"),
                ],
                default="running",
                max_length=8,
            ),
        ),
    ]
