from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("cluster", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="edge",
            name="counted_at",
            field=models.DateTimeField(
                blank=True, editable=False, help_text="until when it has told of its requests", null=True
            ),
        ),
        migrations.AddField(
            model_name="edge",
            name="count_lost_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="until when requests may have gone uncounted",
                null=True,
            ),
        ),
    ]
