import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("workflows", "0002_trail"),
    ]

    operations = [
        migrations.AlterField(
            model_name="workflowstep",
            name="run",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="journal",
                to="workflows.workflowrun",
            ),
        ),
    ]
