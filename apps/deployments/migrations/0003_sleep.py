from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deployments", "0002_initial")]

    operations = [
        migrations.AddField(
            model_name="deployment",
            name="asleep_since",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="on standby since then: the first request wakes it",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="deployment",
            name="woken_at",
            field=models.DateTimeField(
                blank=True, editable=False, help_text="when a request last woke it", null=True
            ),
        ),
    ]
