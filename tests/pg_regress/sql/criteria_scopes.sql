-- G2, A1: whom each scope covers. "Any with roles": at least one listed role, and none but those and what they contain.
CREATE ROLE sales;
CREATE ROLE sales_eu;
CREATE ROLE support;
CREATE ROLE finance;
GRANT sales_eu TO sales;
CREATE ROLE none_of_it LOGIN;
CREATE ROLE one LOGIN IN ROLE sales;
CREATE ROLE two LOGIN IN ROLE sales, support;
CREATE ROLE contained LOGIN IN ROLE sales_eu;
CREATE ROLE listed_and_contained LOGIN IN ROLE sales, sales_eu;
CREATE ROLE one_more LOGIN IN ROLE sales, finance;
CREATE ROLE other LOGIN IN ROLE finance;
CREATE ROLE predefined LOGIN IN ROLE sales, pg_monitor;
CREATE ROLE bare LOGIN NOINHERIT IN ROLE sales;
CREATE ROLE sales_login LOGIN;
CREATE ROLE of_login LOGIN IN ROLE sales_login;
-- Whoever asks holds everything, so that only A1 decides.
CREATE ROLE lead LOGIN IN ROLE sales, sales_eu, support, finance, pg_monitor, sales_login;
GRANT "SET USER ANY WITH ROLES" (sales, support) TO lead;
CREATE VIEW a1 AS
    SELECT rolname, e.ok, e.held FROM pg_catalog.pg_roles, impersonate.explain_setuser(rolname, 'lead') e
     WHERE e.criterion = 'A1' AND rolcanlogin AND NOT rolsuper AND rolname <> 'lead' ORDER BY rolname;
SELECT rolname, ok FROM a1;
-- More on the list covers more.
GRANT "SET USER ANY WITH ROLES" (finance) TO lead;
SELECT rolname, ok FROM a1;
-- A listed role that is a login is a role like any.
REVOKE "SET USER ANY WITH ROLES" FROM lead;
GRANT "SET USER ANY WITH ROLES" (sales_login) TO lead;
SELECT rolname, ok FROM a1 WHERE ok;
-- Users: those and no others, whatever they hold.
REVOKE "SET USER" FROM lead;
GRANT "SET USER" (one, other) TO lead;
SELECT rolname, ok, held FROM a1;
-- Two rights of the same kind, from two grantors, are not one list of roles: each is judged by itself.
REVOKE "SET USER" FROM lead;
CREATE ROLE dba LOGIN;
GRANT "SET USER" TO dba WITH ADMIN OPTION;
GRANT "SET USER ANY WITH ROLES" (sales) TO lead;
SET ROLE dba;
GRANT "SET USER ANY WITH ROLES" (finance) TO lead;
RESET ROLE;
SELECT rolname, ok FROM a1 WHERE rolname <> 'dba';
-- Any covers all.
GRANT "SET USER" TO lead;
SELECT bool_and(ok) FROM a1;
-- The narrowest right is the one that counts.
SELECT rolname, held FROM a1 WHERE rolname IN ('one', 'other', 'two');
-- Admin only covers nobody.
REVOKE "SET USER" FROM lead;
SELECT impersonate.grant_set_user('lead', admin => 'only');
SELECT bool_or(ok) FROM a1;
SELECT * FROM impersonate.explain_setuser('one', 'lead') WHERE criterion = 'A1';
