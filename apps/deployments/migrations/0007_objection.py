from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deployments", "0006_changed_index")]

    operations = [
        migrations.AddField(
            model_name="deployment",
            name="objection",
            field=models.TextField(
                blank=True,
                default="",
                help_text="why it is ready but did not become live: what it would break",
            ),
        ),
    ]
