"""What every client tries: doors.tsv. One that ends with its transaction is "local"; $1 stands for a parameter."""

import csv
import os
from collections import namedtuple

Door = namedtuple("Door", "kind login name tag begin end_tag end end_value")

with open(os.path.join(os.path.dirname(__file__), "doors.tsv"), newline="") as file:
    DOORS = [Door(*row) for row in list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]]

# direct, or how pgbouncer hands connections on: session, transaction
VIA = os.environ.get("VIA", "direct")
WITNESS = "SELECT current_user || ' of ' || session_user"
LOGINS = ["alice", "tool"]


def doors(login, kind):
    return [door for door in DOORS if door.login == login and door.kind == kind]


def end_value(door):
    return None if door.end_value == r"\N" else door.end_value


def there_and_back(login):
    return [f"bob of {login}", f"{login} of {login}"]


def told(name, found, wanted):
    print(f"ok {name}" if found == wanted else f"not ok {name}: {found}")
