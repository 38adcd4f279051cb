-- The database of the demo: who works where and earns what, and who of them may see it.
\set ON_ERROR_STOP on

CREATE EXTENSION impersonate;

-- Roles that give privileges, and people.
CREATE ROLE staff;
CREATE ROLE management;
CREATE ROLE payroll;
CREATE ROLE helpdesk IN ROLE staff, management;
CREATE ROLE bob LOGIN IN ROLE staff, management;
CREATE ROLE carol LOGIN IN ROLE staff, management, payroll;
CREATE ROLE dave LOGIN IN ROLE staff;
CREATE ROLE helpdesk_anna LOGIN IN ROLE helpdesk;

CREATE SCHEMA hr;
GRANT USAGE ON SCHEMA hr TO staff, payroll;

CREATE TABLE hr.department (
    id      int  PRIMARY KEY,
    name    text NOT NULL,
    manager name
);
INSERT INTO hr.department VALUES
    (1, 'Sales', 'bob'), (2, 'Finance', 'carol'), (3, 'Research', NULL), (4, 'Production', NULL), (5, 'IT', NULL);
GRANT SELECT ON hr.department TO staff;

CREATE TABLE hr.employee (
    id         int     PRIMARY KEY,
    login      name    UNIQUE,
    name       text    NOT NULL,
    department int     NOT NULL REFERENCES hr.department,
    salary     numeric NOT NULL
);
INSERT INTO hr.employee VALUES
    (1, 'bob', 'Bob Miller', 1, 6100), (2, 'carol', 'Carol Singh', 2, 7300), (3, 'dave', 'Dave Olsen', 1, 3900),
    (4, 'helpdesk_anna', 'Anna Lindt', 5, 3700);
INSERT INTO hr.employee
    SELECT n, NULL, 'Employee ' || n, 1 + n % 4, 2500 + n * 37 % 3000 FROM generate_series(5, 5000) n;
GRANT SELECT ON hr.employee TO staff;
GRANT UPDATE (salary) ON hr.employee TO management;

-- Which rows: one's own, those of the department that one manages, and all for those who pay the salaries.
ALTER TABLE hr.employee ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON hr.employee FOR SELECT TO staff
    USING (login = current_user);
CREATE POLICY managed ON hr.employee TO management
    USING (department IN (SELECT id FROM hr.department WHERE manager = current_user));
CREATE POLICY everything ON hr.employee FOR SELECT TO payroll
    USING (true);

CREATE TABLE hr.bank_account (
    employee int  PRIMARY KEY REFERENCES hr.employee,
    iban     text NOT NULL
);
INSERT INTO hr.bank_account SELECT id, 'XX' || lpad(id::text, 20, '0') FROM hr.employee;
GRANT SELECT ON hr.bank_account TO payroll;

ANALYZE hr.department, hr.employee, hr.bank_account;
