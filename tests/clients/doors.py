"""The doors that every client tries: name, beginning, end. $ stands for the name as a parameter."""

DOORS = [
    ("setuser()", "SELECT setuser('bob')", "SELECT setuser()"),
    ("set_config()", "SELECT set_config('impersonate.target', 'bob', false)",
     "SELECT set_config('impersonate.target', '', false)"),
    ("SET", "SET impersonate.target = 'bob'", "SET impersonate.target = ''"),
    ("RESET", "SET impersonate.target TO 'bob'", "RESET impersonate.target"),
    ("CALL", "CALL impersonate.impersonate_user('bob')", "CALL impersonate.impersonate_user(NULL)"),
]


def told(name, found, wanted):
    print(f"ok {name}" if found == wanted else f"not ok {name}: {found}")
