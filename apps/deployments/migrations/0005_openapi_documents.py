from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deployments", "0004_autoscaling")]

    operations = [
        migrations.AddField(
            model_name="openapispec",
            name="document",
            field=models.BinaryField(
                editable=False,
                help_text="the document as it was understood, packed; null if it was not",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="openapispec",
            name="fault",
            field=models.CharField(blank=True, help_text="why it cannot be compared", max_length=512),
        ),
    ]
