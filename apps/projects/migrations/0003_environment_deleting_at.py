from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("projects", "0002_refuse_breaking_changes")]

    operations = [
        migrations.AddField(
            model_name="environment",
            name="deleting_at",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
    ]
