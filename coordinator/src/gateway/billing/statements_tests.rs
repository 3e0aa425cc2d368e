//! Months that close, whatever moved in them.

use super::super::dates::{month_begins_s, parse_month};
use super::*;
use crate::state::{
    Command, Counts, Ended, Final, KeySettings, Origin, Outcome, PriceList, Progress, Proposal,
    ProposalId, Report, apply,
};
use trireme_shared::ids::{CoordinatorId, GatewayLife, RequestId, TenantId};

/// A state and whoever proposes to it at some second.
struct Books {
    state: Replica,
    asked: u64,
    now_s: u64,
}

impl Books {
    fn new() -> Self {
        let mut books = Self {
            state: Replica::default(),
            asked: 0,
            now_s: month_begins_s(parse_month("2026-01").unwrap()),
        };
        books.ask(Command::Bootstrap {
            name: "c&o".into(),
            cluster: crate::state::ClusterId([1; 16]),
            authority_pem: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            admin_key_hash: [9; 32],
        });
        for (tenant, byte) in [("=ac<me>", 1), ("zeta", 2)] {
            books.ask(Command::CreateKey {
                tenant: tenant.into(),
                key_hash: [byte; 32],
                settings: KeySettings {
                    name: "+laptop".into(),
                    ..KeySettings::default()
                },
            });
        }
        books.ask(Command::PutPrice {
            model: "a,b".into(),
            effective_from: 0,
            list: PriceList {
                input: NanoUsd(1_000_000),
                cached_input: NanoUsd(500_000),
                output: NanoUsd(2_000_000),
                minimum: NanoUsd(3),
            },
        });
        books.ask(Command::OpenGateway {
            coordinator: CoordinatorId(1),
        });
        books
    }

    fn ask(&mut self, command: Command) -> Outcome {
        self.asked += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.asked.to_le_bytes());
        let proposal = Proposal {
            id: ProposalId(id),
            base: self.state.commands(),
            at_ms: self.now_s * 1_000,
            origin: Some(Origin {
                who: "admin".into(),
                from: "t".into(),
            }),
            command,
        };
        let outcome = apply(&mut self.state, &proposal).outcome;
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        outcome
    }

    /// A request of a tenant: prompt, cached and generated tokens.
    fn uses(&mut self, tenant: u32, name: &str, counts: Counts) {
        self.now_s += 2;
        let mut report = Report::new(GatewayLife(1));
        report.finals.push(Final {
            progress: Progress {
                request: RequestId::parse(name).unwrap(),
                caller_id: None,
                tenant: TenantId(tenant),
                key: KeyId(tenant),
                model: "a,b".into(),
                began_at_ms: self.now_s * 1_000,
                idempotency: None,
                counts,
                work: Vec::new(),
            },
            ended: Ended::Finished,
        });
        self.ask(Command::Report { report });
    }

    fn credit(&mut self, amount: i64) {
        self.ask(Command::Credit {
            tenant: TenantId(1),
            amount: NanoUsd(amount),
            reason: "paid".into(),
        });
    }

    fn statement(&self, month: &str) -> Statement {
        let tenant = self.state.tenant(TenantId(1)).unwrap();
        statement(&self.state, tenant, parse_month(month).unwrap())
    }

    fn at(&mut self, month: &str) {
        self.now_s = month_begins_s(parse_month(month).unwrap()) + 60;
    }

    /// Four months: one without anything, and the other tenant's requests between.
    fn filled() -> Self {
        let mut books = Self::new();
        books.credit(10_000);
        books.uses(1, "r1", Counts::new(100, 40, 10));
        books.uses(2, "z1", Counts::new(9_999, 0, 9_999));
        books.at("2026-02");
        books.uses(1, "r2", Counts::new(50, 0, 0));
        books.credit(-2_500);
        books.ask(Command::Refund {
            request: RequestId::parse("r1").unwrap(),
            amount: NanoUsd(30),
            reason: "slow".into(),
        });
        books.at("2026-04");
        books.uses(1, "r3", Counts::new(1, 0, 1));
        books.state.check().unwrap();
        books
    }
}

fn assert_closes(of: &Statement) {
    let sum = of.opening_nano_usd.0 - of.charges_nano_usd.0
        + of.credits_nano_usd.0
        + of.refunds_nano_usd.0;
    assert_eq!(sum, of.closing_nano_usd.0, "{}", of.month);
    let of_models: i64 = of.models.iter().map(|m| m.usage.cost_nano_usd.0).sum();
    let of_keys: i64 = of.keys.iter().map(|k| k.usage.cost_nano_usd.0).sum();
    assert_eq!(
        (of_models, of_keys),
        (of.charges_nano_usd.0, of.charges_nano_usd.0)
    );
}

#[test]
fn months_close_and_each_opens_where_the_one_before_closed() {
    let books = Books::filled();
    let months = ["2026-01", "2026-02", "2026-03", "2026-04"];
    let all: Vec<Statement> = months.iter().map(|m| books.statement(m)).collect();
    all.iter().for_each(assert_closes);
    assert_eq!(all[0].opening_nano_usd, NanoUsd(0));
    for two in all.windows(2) {
        assert_eq!(two[0].closing_nano_usd, two[1].opening_nano_usd);
    }
    let balance = books.state.balance(&Account::Tenant(TenantId(1)));
    assert_eq!(all[3].closing_nano_usd, balance);
    // 60 fresh, 40 cached at half, 10 generated at twice.
    assert_eq!(all[0].charges_nano_usd, NanoUsd(60 + 20 + 20));
    assert_eq!(all[0].models[0].usage.prompt_tokens, 100);
    assert_eq!(
        (all[1].credits_nano_usd, all[1].refunds_nano_usd),
        (NanoUsd(-2_500), NanoUsd(30))
    );
    assert_eq!(all[2].charges_nano_usd, NanoUsd(0));
    assert!(all[2].models.is_empty());
    assert_eq!(all[3].keys[0].name, "+laptop");
}

#[test]
fn a_month_is_provisional_until_the_states_time_has_passed_it() {
    let mut books = Books::filled();
    assert!(books.statement("2026-04").provisional);
    assert!(!books.statement("2026-03").provisional);
    // The wall's clock does not matter: what comes by a slow one still counts to April.
    books.now_s = month_begins_s(parse_month("2026-05").unwrap()) - 1;
    books.credit(1);
    assert!(books.statement("2026-04").provisional);
    books.now_s += 1;
    books.credit(1);
    assert!(!books.statement("2026-04").provisional);
    assert_eq!(books.statement("2026-05").credits_nano_usd, NanoUsd(1));
}

#[test]
fn a_csv_has_a_line_a_sum_and_no_formula() {
    let books = Books::filled();
    let csv = statement_csv::write(&books.statement("2026-01"));
    let lines: Vec<&str> = csv.split_terminator("\r\n").collect();
    assert!(lines[0].starts_with("tenant,month,provisional,line,name,requests"));
    assert_eq!(lines[1], "\"'=ac<me>\",2026-01,false,opening,,,,,,0,0.00");
    assert_eq!(
        lines[2],
        "\"'=ac<me>\",2026-01,false,model,\"a,b\",1,100,40,10,100,0.0000001"
    );
    assert_eq!(
        lines[3],
        "\"'=ac<me>\",2026-01,false,key,k1 +laptop,1,100,40,10,100,0.0000001"
    );
    assert_eq!(
        lines[4],
        "\"'=ac<me>\",2026-01,false,charges,,,,,,-100,-0.0000001"
    );
    assert_eq!(
        lines[7],
        "\"'=ac<me>\",2026-01,false,closing,,,,,,9900,0.0000099"
    );
    assert_eq!(lines.len(), 8);
    assert!(!csv.replace("\r\n", "").contains(['\r', '\n']));
}

#[test]
fn a_page_is_escaped_and_stands_alone() {
    let books = Books::filled();
    let page = statement_html::write(&books.statement("2026-04"));
    for part in [
        "=ac&lt;me&gt;",
        "c&amp;o",
        "Provisional",
        "From 2026-04-01 to 2026-04-30",
        "<td>k1 +laptop</td>",
        "<tr class=\"sum\"><td>Closing balance</td>",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for banned in ["<script", "http", "src=", "<me>", "url("] {
        assert!(!page.contains(banned), "{banned}");
    }
}

#[test]
fn the_form_is_what_is_wanted_most() {
    let form = |accept: &[&str]| {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        accepted(&headers)
    };
    assert_eq!(form(&[]), Form::Json);
    assert_eq!(form(&["*/*"]), Form::Json);
    assert_eq!(form(&["text/csv"]), Form::Csv);
    assert_eq!(
        form(&["text/html,application/xml;q=0.9,*/*;q=0.8"]),
        Form::Html
    );
    assert_eq!(
        form(&["text/csv;q=0.2, application/json;q=0.5"]),
        Form::Json
    );
    assert_eq!(form(&["image/png", "text/csv;q=0.001"]), Form::Csv);
    assert_eq!(form(&["text/html;q=0"]), Form::Json);
    assert_eq!(form(&["text/html;q=x"]), Form::Json);
}
