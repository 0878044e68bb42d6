"""Learning from the page: photos, the queue of trainings, and what each run has come to."""
