"""Root keys: the end of their text, and when they were last used."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("workspaces", "0003_suspension")]

    operations = [
        migrations.AddField(
            model_name="rootkey",
            name="end",
            field=models.CharField(blank=True, default="", editable=False, max_length=8),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="rootkey",
            name="last_used_at",
            field=models.DateTimeField(blank=True, help_text="to the minute; of calls to web", null=True),
        ),
    ]
