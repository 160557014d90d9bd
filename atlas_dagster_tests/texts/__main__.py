"""Write ``messages.txt``, all texts of Atlas that users may see. ``make texts`` runs this."""

from atlas_dagster_tests.texts.collect import MESSAGES, collect

MESSAGES.write_text(collect())
