"""The main job on a fresh machine, small and real: synthetic speech, a teacher, a student, on-policy distillation, a report."""
