//! The texts of configuration errors, word for word: they are what people see first.

#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};

use super::*;

const GOOD: &str = r#"
[cluster]
id = "7d0d7a3e-8a51-4b69-9d1c-1f2a5b7c9e01"
[node]
id = 1
data_dir = "/var/lib/synapsedb/node-1"
[[member]]
id = 1
peers = "10.0.0.1:7401"
postgres = "10.0.0.1:5432"
http = "10.0.0.1:8080"
"#;

fn parse(more: &str, environment: &[(&str, &str)]) -> Result<AgentConfig, Problems> {
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    AgentConfig::parse("agent.toml", &format!("{GOOD}{more}"), &environment)
}

fn refuses(more: &str, environment: &[(&str, &str)], expected: Expect) {
    expected.assert_eq(&parse(more, environment).unwrap_err().to_string());
}

#[test]
fn a_good_file_gets_defaults_and_paths() {
    let config = parse("", &[]).unwrap();
    assert_eq!(config.postgres.data_dir, PathBuf::from("/var/lib/synapsedb/node-1/pgdata"));
    assert_eq!(config.postgres.port, 5432);
    assert_eq!(config.peer_addresses().len(), 1);
    assert_eq!(config.node_id(), NodeId::new(1));
}

#[test]
fn every_problem_is_told_with_its_line() {
    refuses(
        "[postgres]\nprot = 5433\nport = \"abc\"\nmode = \"attachd\"\nmax_connections = 3\nprobe_interval_ms = -1\n\
         [postgrez]\nx = 1\n",
        &[],
        expect![[r#"
            agent.toml:13: postgres.prot: unknown key `prot`; did you mean `port`? allowed:
                mode, url, password_file, agent_role, role, role_verifier_file, database,
                bin_dir, data_dir, socket_dir, listen, port, log_file, os_user, cluster_name,
                max_connections, shared_buffers_mb, settings, hba, replication_slots_min,
                wal_senders_min, probe_interval_ms, probe_timeout_ms, probe_failures_max,
                start_timeout_ms, stop_timeout_ms, retry_min_ms, retry_max_ms
            agent.toml:14: postgres.port: is string "abc"; expected a whole number from 0 to 65535
            agent.toml:15: postgres.mode: unknown value `attachd`; did you mean `attached`? allowed: managed, attached
            agent.toml:16: postgres.max_connections: is 3; allowed: a whole number from 20 to 262143
            agent.toml:17: postgres.probe_interval_ms: is integer -1; expected a whole number, 0 or more
            agent.toml:18: postgrez: unknown key `postgrez`; did you mean `postgres`? allowed:
                cluster, node, member, postgres, peers, tls, gossip, raft, replication,
                router, failover, http"#]],
    );
}

#[test]
fn numbers_that_do_not_fit() {
    refuses(
        "[postgres]\nport = 70000\nhba = [1, 2]\nsettings = \"x\"\n",
        &[],
        expect![[r#"
        agent.toml:13: postgres.port: is integer 70000; expected a whole number from 0 to 65535
        agent.toml:14: postgres.hba.0: is integer 1; expected a text in quotes
        agent.toml:15: postgres.settings: is string "x"; expected a section"#]],
    );
}

#[test]
fn durability_classes() {
    refuses(
        "[replication.durability]\nclass = \"global\"\nmembers = 17\non_lost_quorum = \"block\"\n",
        &[],
        expect![[r#"
            agent.toml:13: replication.durability.class: unknown value `global`; did you mean `local`? allowed: local, quorum, applied
            agent.toml:14: replication.durability.members: is 17; allowed: a whole number from 0 to 16"#]],
    );
}

#[test]
fn the_split_endpoint_has_a_port_of_its_own() {
    assert_eq!(parse("", &[]).unwrap().router.split_listen, None);
    let told = |more: &str| parse(more, &[]).map(drop).map_err(|problems| problems.to_string());
    assert!(told("[router]\nsplit_listen = \"127.0.0.1:5003\"\n").is_ok());
    assert!(told("[router]\nsplit_listen = \"127.0.0.2:5002\"\n").is_ok());
    for (port, key) in [
        (5001, "router.read_listen"),
        (5002, "router.write_listen"),
        (5432, "postgres.port"),
        (8080, "http.raft"),
    ] {
        let text = told(&format!("[router]\nsplit_listen = \"127.0.0.1:{port}\"\n")).unwrap_err();
        assert!(text.starts_with("agent.toml:13: router.split_listen: listens on"), "{text}");
        assert!(text.contains(key), "{text}");
    }
    let text = told("[router]\nsplit_listen = \"0.0.0.0:5001\"\n").unwrap_err();
    assert!(text.contains("router.read_listen"), "{text}");
    let text = told("[router]\nsplit_texts_max = 1\nsplit_names_max_age_ms = 1\n").unwrap_err();
    assert!(text.contains("router.split_texts_max") && text.contains("split_names_max_age_ms"));
    assert!(told("[router]\nsplit_listen = 5003\n").is_err());
}

#[test]
fn missing_keys() {
    let problems = AgentConfig::parse("agent.toml", "[node]\nid = 17\n", &[]).unwrap_err();
    expect![[r#"
        agent.toml: cluster.id: is missing; set it to the cluster's UUID, the same on all nodes
        agent.toml: node.data_dir: is missing; set it to the node's directory, an absolute path
        agent.toml: member: is missing; set it to one [[member]] table for every node of the cluster, this one included
        agent.toml:2: node.id: is 17; allowed: a whole number from 1 to 16"#]].assert_eq(&problems.to_string());
}

#[test]
fn no_toml_at_all() {
    refuses(
        "[postgres\nport = = 3\n",
        &[],
        expect![[r#"
        agent.toml:12: is not TOML: unclosed table, expected `]`
        agent.toml:13: is not TOML: extra `=`, expected nothing
        agent.toml:13: is not TOML: unexpected key or value, expected newline, `#`"#]],
    );
}

#[test]
fn members_are_checked() {
    refuses(
        "[[member]]\nid = 1\npeers = \"nowhere\"\npostgres = \"h:1\"\nhttp = \"h:0\"\n[[member]]\nid = 99\n",
        &[],
        expect![[r#"
            agent.toml:12: member.1: has the id 1 of another member
            agent.toml:14: member.1.peers: is "nowhere"; expected host:port
            agent.toml:16: member.1.http: is "h:0"; expected host:port
            agent.toml:17: member.2: has id 99; allowed: 1 to 16"#]],
    );
    let other = GOOD.replace("[node]\nid = 1", "[node]\nid = 2");
    let problems = AgentConfig::parse("agent.toml", &other, &[]).unwrap_err();
    expect!["agent.toml:7: member: there is no [[member]] with the id 2 of this node"]
        .assert_eq(&problems.to_string());
}

#[test]
fn modes_need_their_keys() {
    let told = |more: &str| parse(more, &[]).unwrap_err().to_string();
    let text = told("[postgres]\nmode = \"attached\"\n");
    assert!(text.starts_with("agent.toml:13: postgres.mode: is \"attached\""), "{text}");
    assert!(text.contains("there is no postgres.url to attach to"), "{text}");
    let text = told("[postgres]\nmode = \"attached\"\nurl = \"postgresql://h:1/d\"\n");
    assert!(text.starts_with("agent.toml:14: postgres.url: "), "{text}");
    assert!(text.contains("no user"), "{text}");
    let text = told("[postgres]\nurl = \"postgresql://u@h:1/d\"\n");
    assert!(text.contains("postgres.url: is for mode = \"attached\" only"), "{text}");
    let url = "[postgres]\nmode = \"attached\"\nurl = \"postgresql://u@h:1/d\"\n";
    assert!(parse(url, &[]).is_ok());
}

#[test]
fn rules_of_the_router_are_whole() {
    let told = |more: &str| parse(more, &[]).unwrap_err().to_string();
    let text = told("[router]\nclient_certificates = \"require\"\n");
    assert!(text.starts_with("agent.toml:13: router.client_certificates: needs router.tls_client"));
    let text = told("[[router.pools]]\nuser = \"ada\"\n");
    assert!(text.starts_with("agent.toml:12: router.pools.0: needs a `mode`"), "{text}");
    let text = told("[[router.pools]]\nsize = 0\nmode = \"session\"\n");
    assert!(text.contains("router.pools.0: needs"), "{text}");
    let text = told("[[router.certificate_roles]]\nrole = \"ada\"\n");
    assert!(text.contains("router.certificate_roles.0: needs `certificate`"), "{text}");
    let text = told("[router]\nserver_tls = \"sometimes\"\n");
    assert!(text.contains("router.server_tls") && text.contains("verify-full"), "{text}");
    let good = "[router]\nclient_certificates = \"allow\"\ntls_client_ca_file = \"/ca.crt\"\nserver_tls = \
                \"verify-full\"\n[[router.pools]]\ndatabase = \"app\"\nmode = \"statement\"\n\
                [[router.certificate_roles]]\ncertificate = \"robot\"\nrole = \"ada\"\n";
    let config = parse(good, &[]).unwrap().router;
    assert_eq!((config.pools.len(), config.certificate_roles.len()), (1, 1));
}

#[test]
fn the_environment_overrides_and_is_named_in_errors() {
    let config = parse(
        "",
        &[
            ("SYNAPSEDB_POSTGRES__PORT", "6000"),
            ("SYNAPSEDB_POSTGRES__ROLE", "123"),
            ("SYNAPSEDB_POSTGRES__LISTEN", "127.0.0.1"),
            ("SYNAPSEDB_POSTGRES__SETTINGS__WORK_MEM", "8MB"),
            ("SYNAPSEDB_POSTGRES__HBA", r#"["local all x trust"]"#),
        ],
    )
    .unwrap();
    assert_eq!((config.postgres.port, config.postgres.role.as_str()), (6000, "123"));
    assert_eq!(config.postgres.settings["work_mem"], "8MB");
    assert_eq!(config.postgres.hba, ["local all x trust"]);
    refuses(
        "[postgres]\nport = 5433\n",
        &[
            ("SYNAPSEDB_POSTGRES__PORT", "many"),
            ("SYNAPSEDB_POSTGRES__LISTENS", "x"),
            ("SYNAPSEDB_MEMBER__ID", "2"),
        ],
        expect![[r#"
            environment SYNAPSEDB_MEMBER__ID: member: is no section, so that no key of it can be set; edit the file
            environment SYNAPSEDB_POSTGRES__LISTENS: postgres.listens: unknown key `listens`; did you mean `listen`? allowed:
                mode, url, password_file, agent_role, role, role_verifier_file, database,
                bin_dir, data_dir, socket_dir, listen, port, log_file, os_user, cluster_name,
                max_connections, shared_buffers_mb, settings, hba, replication_slots_min,
                wal_senders_min, probe_interval_ms, probe_timeout_ms, probe_failures_max,
                start_timeout_ms, stop_timeout_ms, retry_min_ms, retry_max_ms
            environment SYNAPSEDB_POSTGRES__PORT: postgres.port: is string "many"; expected a whole number from 0 to 65535"#]],
    );
}

#[test]
fn the_default_password_stays_at_home() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("role.verifier");
    let check = |listen: &str, password: &str| {
        std::fs::write(&file, postgres::verifier(password)).unwrap();
        let mut config = parse("", &[]).unwrap();
        config.postgres.role_verifier_file = Some(file.clone());
        config.postgres.listen = listen.to_owned();
        let mut problems = Problems::new("agent.toml");
        check::public_addresses(&config, &mut problems);
        problems.into_result(()).map_err(|problems| problems.to_string())
    };
    assert!(check("127.0.0.1", "synapsedb").is_ok());
    assert!(check("localhost,::1", "synapsedb").is_ok());
    assert!(check("0.0.0.0", "a better one").is_ok());
    assert!(check("*", "synapsedb").is_err());
    assert!(check("db.example.org", "synapsedb").is_err());
    let refusal = check("0.0.0.0", "synapsedb").unwrap_err();
    assert!(
        refusal.contains("agent.toml: postgres.listen: listens on 0.0.0.0, which others can reach")
    );
    assert!(refusal.contains("the default password; start the cluster with POSTGRES_PASSWORD set"));
}
