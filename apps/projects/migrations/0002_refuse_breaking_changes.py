from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("projects", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="environment",
            name="refuse_breaking_changes",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="a deployment whose OpenAPI document breaks clients of the live one does not "
                "become live",
            ),
        ),
    ]
