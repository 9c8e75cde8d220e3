"""Several machines: doctor, roll call, supervision. Imports run_folder/ and the rooms above."""
