"""The papers' data sets: found on the machine, or fetched and compared with a checksum."""
