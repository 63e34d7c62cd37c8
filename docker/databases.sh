#!/bin/sh
# The PostgreSQL image makes the database `mlflow`, and runs this script once, when its volume is empty.
set -eu
createdb --username "$POSTGRES_USER" sweeps
