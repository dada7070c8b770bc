//! What the bank knows: two accounts, their transactions, and the payment requests it was given. Pure.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::rules::Fault;

/// One of the demo accounts.
pub const DEMO_ACCOUNT: &str = "3dc3d5b3-7023-4848-9853-f5400a64e80f";
const ACCOUNTS: [(&str, &str, &str); 2] = [
    (DEMO_ACCOUNT, "FR7610278000010002000300141", "Compte courant"),
    ("86a4f0b1-51f1-4f4e-a7b5-2f9f1d9e2c11", "FR7610278000010002000300238", "Compte professionnel"),
];
/// Transactions that each account has.
const TRANSACTIONS: usize = 1000;
const PAGE: usize = 20;
/// Payment requests that are remembered, and the bytes of all of them; the oldest goes first, the last one stays.
const PAYMENTS: usize = 10_000;
const PAYMENT_BYTES: usize = 16 * 1024 * 1024;

/// The bank's memory.
#[derive(Default)]
pub(super) struct Resources {
    payments: Mutex<Payments>,
}

#[derive(Default)]
struct Payments {
    requests: VecDeque<Payment>,
    bytes: usize,
}

struct Payment {
    id: String,
    /// As it was sent: a JSON object.
    document: Bytes,
    status: &'static str,
}

impl Payments {
    fn remember(&mut self, payment: Payment) {
        self.bytes += payment.document.len();
        self.requests.push_back(payment);
        while self.requests.len() > 1 && (self.requests.len() > PAYMENTS || self.bytes > PAYMENT_BYTES) {
            self.bytes -= self.requests.pop_front().map_or(0, |oldest| oldest.document.len());
        }
    }

    fn find(&mut self, id: &str) -> Result<&mut Payment, Fault> {
        self.requests.iter_mut().find(|payment| payment.id == id).ok_or_else(unknown)
    }
}

/// An answer before it is rendered.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// JSON.
    pub(super) body: Bytes,
    pub(super) location: Option<String>,
}

impl Reply {
    pub(super) fn new(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("what the bank says has text for keys");
        Self { status, body: body.into(), location: None }
    }

    fn ok(body: &Value) -> Self {
        Self::new(StatusCode::OK, body)
    }
}

impl Resources {
    /// Answers a request for `path` below `base` (`/sandbox/becm/stet-psd2-api/v2.1`).
    pub(super) fn answer(
        &self,
        method: &Method,
        base: &str,
        path: &str,
        query: &str,
        body: &Bytes,
    ) -> Result<Reply, Fault> {
        let segments: Vec<&str> = path.split('/').collect();
        let get = || if method == Method::GET { Ok(()) } else { Err(wrong_method()) };
        let post = || if method == Method::POST { Ok(()) } else { Err(wrong_method()) };
        match segments.as_slice() {
            ["accounts"] => get().map(|()| Reply::ok(&accounts(base))),
            ["accounts", id, "balances"] => get().and_then(|()| balances(base, id)),
            ["accounts", id, "transactions"] => get().and_then(|()| transactions(base, id, query)),
            ["end-user-identity"] => get().map(|()| Reply::ok(&identity(base))),
            ["trusted-beneficiaries"] => get().map(|()| Reply::ok(&beneficiaries(base))),
            ["payment-requests"] => post().and_then(|()| self.request_payment(base, body)),
            ["payment-requests", id] => get().and_then(|()| self.payment(base, id)),
            ["payment-requests", id, "o-confirmation"] => post().and_then(|()| self.confirm(base, id, body)),
            _ => Err(unknown()),
        }
    }

    fn request_payment(&self, base: &str, body: &Bytes) -> Result<Reply, Fault> {
        object(body)?;
        let id = uuid::Uuid::new_v4().to_string();
        let location = format!("{base}/payment-requests/{id}");
        let consent = format!("https://www.becm.fr/oauth2/fr/sandbox/signin.html?paymentRequestResourceId={id}");
        self.lock().remember(Payment { id, document: body.clone(), status: "ACTC" });
        let answer =
            json!({ "appliedAuthenticationApproach": "REDIRECT", "_links": { "consentApproval": link(consent) } });
        Ok(Reply { location: Some(location), ..Reply::new(StatusCode::CREATED, &answer) })
    }

    fn payment(&self, base: &str, id: &str) -> Result<Reply, Fault> {
        payment_document(base, self.lock().find(id)?)
    }

    fn confirm(&self, base: &str, id: &str, body: &[u8]) -> Result<Reply, Fault> {
        object(body)?;
        let mut payments = self.lock();
        let payment = payments.find(id)?;
        payment.status = "ACSC";
        payment_document(base, payment)
    }

    fn lock(&self) -> MutexGuard<'_, Payments> {
        // The list is whole after any panic: only its count of bytes could be off, by one request.
        self.payments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown() -> Fault {
    Fault::new(StatusCode::NOT_FOUND, "no such resource")
}

fn wrong_method() -> Fault {
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "the resource does not take this method")
}

fn object(body: &[u8]) -> Result<Value, Fault> {
    let document: Option<Value> = serde_json::from_slice(body).ok();
    document.filter(Value::is_object).ok_or_else(|| Fault::new(StatusCode::BAD_REQUEST, "the body is no JSON object"))
}

fn link(href: String) -> Value {
    json!({ "href": href })
}

fn payment_document(base: &str, payment: &Payment) -> Result<Reply, Fault> {
    let mut request = object(&payment.document)?;
    request["resourceId"] = json!(payment.id);
    request["paymentInformationStatus"] = json!(payment.status);
    let itself = link(format!("{base}/payment-requests/{}", payment.id));
    Ok(Reply::ok(&json!({ "paymentRequest": request, "_links": { "self": itself } })))
}

fn accounts(base: &str) -> Value {
    let accounts = ACCOUNTS.iter().map(|(id, iban, name)| {
        json!({
            "resourceId": id,
            "bicFi": "CMCIFR2A",
            "accountId": { "iban": iban, "currency": "EUR" },
            "name": name,
            "usage": "PRIV",
            "cashAccountType": "CACC",
            "product": name,
            "psuStatus": "Account Holder",
            "_links": {
                "balances": link(format!("{base}/accounts/{id}/balances")),
                "transactions": link(format!("{base}/accounts/{id}/transactions")),
            }
        })
    });
    json!({
        "connectedPsu": "Camille Exemple",
        "accounts": accounts.collect::<Vec<_>>(),
        "_links": {
            "self": link(format!("{base}/accounts")),
            "endUserIdentity": link(format!("{base}/end-user-identity")),
            "beneficiaries": link(format!("{base}/trusted-beneficiaries")),
        }
    })
}

fn known(id: &str) -> Result<(), Fault> {
    if ACCOUNTS.iter().any(|(known, ..)| *known == id) { Ok(()) } else { Err(unknown()) }
}

fn balances(base: &str, id: &str) -> Result<Reply, Fault> {
    known(id)?;
    Ok(Reply::ok(&json!({
        "balances": [{
            "name": "Solde comptable",
            "balanceAmount": { "currency": "EUR", "amount": "1234.56" },
            "balanceType": "CLBD",
            "referenceDate": "2026-11-20"
        }],
        "_links": {
            "self": link(format!("{base}/accounts/{id}/balances")),
            "transactions": link(format!("{base}/accounts/{id}/transactions")),
        }
    })))
}

fn transactions(base: &str, id: &str, query: &str) -> Result<Reply, Fault> {
    known(id)?;
    let parameter =
        |wanted: &str| query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == wanted);
    let number = |name: &str, default: usize| match parameter(name) {
        None => Ok(default),
        Some((_, value)) => value
            .parse::<usize>()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| Fault::new(StatusCode::BAD_REQUEST, format!("{name} is no positive number"))),
    };
    let since = parameter("dateFrom").map(|(_, since)| day(since)).transpose()?.unwrap_or_default();
    let total = (0..TRANSACTIONS).take_while(|number| booked(*number).as_str() >= since).count();
    let size = number("page_size", PAGE)?.min(TRANSACTIONS);
    let last = total.div_ceil(size).max(1);
    let page = number("page", 1)?;
    if page > last {
        return Err(unknown());
    }
    let href = |page: usize| {
        let date = parameter("dateFrom").map_or(String::new(), |(_, date)| format!("dateFrom={date}&"));
        let size = if size == PAGE { String::new() } else { format!("page_size={size}&") };
        link(format!("{base}/accounts/{id}/transactions?{date}{size}page={page}"))
    };
    let mut links = json!({
        "self": href(page),
        "first": href(1),
        "last": href(last),
        "balances": link(format!("{base}/accounts/{id}/balances")),
    });
    if page < last {
        links["next"] = href(page + 1);
    }
    if page > 1 {
        links["prev"] = href(page - 1);
    }
    let from = (page - 1) * size;
    let entries: Vec<Value> = (from..(from + size).min(total)).map(transaction).collect();
    Ok(Reply::ok(&json!({ "transactions": entries, "_links": links })))
}

/// The day of a date or of a date and time (ISO 8601).
fn day(text: &str) -> Result<&str, Fault> {
    let shape =
        |(index, byte): (usize, u8)| if index == 4 || index == 7 { byte == b'-' } else { byte.is_ascii_digit() };
    let day = text.get(..10).filter(|day| day.bytes().enumerate().all(shape));
    day.ok_or_else(|| Fault::new(StatusCode::BAD_REQUEST, "dateFrom does not begin with a date like 2026-10-01"))
}

/// When a transaction was booked; they are numbered from the newest.
fn booked(number: usize) -> String {
    format!("2026-10-{:02}", 28 - number * 28 / TRANSACTIONS)
}

fn transaction(number: usize) -> Value {
    json!({
        "resourceId": format!("T{number:06}"),
        "entryReference": format!("E{number:06}"),
        "transactionAmount": { "currency": "EUR", "amount": format!("{}.{:02}", number % 500, number % 100) },
        "creditDebitIndicator": if number.is_multiple_of(3) { "CRDT" } else { "DBIT" },
        "status": "BOOK",
        "bookingDate": booked(number),
        "remittanceInformation": { "unstructured": [format!("Paiement {number}")] }
    })
}

fn identity(base: &str) -> Value {
    json!({ "connectedPsu": "Camille Exemple", "_links": { "self": link(format!("{base}/end-user-identity")) } })
}

fn beneficiaries(base: &str) -> Value {
    json!({
        "beneficiaries": [{
            "id": "B1",
            "isTrusted": true,
            "creditorAgent": { "bicFi": "CMCIFR2A" },
            "creditor": { "name": "Fournisseur Exemple" },
            "creditorAccount": { "iban": "FR7610278000010002000300335" }
        }],
        "_links": { "self": link(format!("{base}/trusted-beneficiaries")) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/sandbox/becm/stet-psd2-api/v2.1";

    fn ask(resources: &Resources, method: Method, path: &str, body: &str) -> Result<(StatusCode, Value), Fault> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let reply = resources.answer(&method, BASE, path, query, &Bytes::copy_from_slice(body.as_bytes()))?;
        Ok((reply.status, serde_json::from_slice(&reply.body).expect("JSON")))
    }

    fn get(path: &str) -> Value {
        ask(&Resources::default(), Method::GET, path, "").expect("an answer").1
    }

    fn refused(method: Method, path: &str, body: &str) -> StatusCode {
        ask(&Resources::default(), method, path, body).expect_err("refused").status
    }

    /// Asks the bank for a payment and returns its path below the base.
    fn pay(resources: &Resources, body: &str) -> String {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let reply = resources.answer(&Method::POST, BASE, "payment-requests", "", &body).expect("an answer");
        assert_eq!(reply.status, StatusCode::CREATED);
        let location = reply.location.expect("a location");
        location.strip_prefix(&format!("{BASE}/")).expect("host-relative, with the brand").to_owned()
    }

    #[test]
    fn every_link_but_the_consent_page_is_relative_to_the_host() {
        let account = format!("accounts/{DEMO_ACCOUNT}");
        for path in [
            "accounts",
            &format!("{account}/balances"),
            &format!("{account}/transactions?page=2"),
            "end-user-identity",
            "trusted-beneficiaries",
        ] {
            let answer = get(path);
            let links = answer["_links"].as_object().expect("links");
            assert!(links.contains_key("self"), "{path}");
            for link in links.values() {
                assert!(link["href"].as_str().expect("text").starts_with(&format!("{BASE}/")), "{path}: {link}");
            }
        }
    }

    #[test]
    fn the_pages_of_an_account_lead_from_the_first_to_the_last() {
        let mut path = format!("accounts/{DEMO_ACCOUNT}/transactions");
        let mut seen = Vec::new();
        loop {
            let page = get(&path);
            let entries = page["transactions"].as_array().expect("transactions");
            seen.extend(entries.iter().map(|entry| entry["resourceId"].to_string()));
            let Some(next) = page["_links"]["next"]["href"].as_str() else { break };
            path = next.strip_prefix(&format!("{BASE}/")).expect("host-relative").to_owned();
        }
        let all = seen.len();
        seen.dedup();
        assert_eq!((all, seen.len()), (TRANSACTIONS, TRANSACTIONS));
        assert_eq!(refused(Method::GET, &format!("accounts/{DEMO_ACCOUNT}/transactions?page=51"), ""), 404);
        for query in ["page=0", "page=a", "page_size=0", "page_size=-1", "dateFrom=", "dateFrom=yesterday"] {
            assert_eq!(refused(Method::GET, &format!("accounts/{DEMO_ACCOUNT}/transactions?{query}"), ""), 400);
        }
    }

    #[test]
    fn transactions_begin_with_the_date_that_was_asked_for() {
        let path = format!("accounts/{DEMO_ACCOUNT}/transactions?dateFrom=2026-10-28T00:00:00%2B01:00");
        let page = get(&path);
        let last = page["_links"]["last"]["href"].as_str().expect("text");
        assert!(last.ends_with("?dateFrom=2026-10-28T00:00:00%2B01:00&page=2"), "{last}");
        let entries = page["transactions"].as_array().expect("transactions");
        assert!(entries.len() == PAGE && entries.iter().all(|entry| entry["bookingDate"] == "2026-10-28"));
        let none = get(&format!("accounts/{DEMO_ACCOUNT}/transactions?dateFrom=2027-01-01"));
        assert_eq!(none["transactions"], json!([]));
    }

    #[test]
    fn a_page_can_be_a_hundred_kilobytes() {
        let page = get(&format!("accounts/{DEMO_ACCOUNT}/transactions?page_size=500"));
        assert!(page.to_string().len() > 100_000);
    }

    #[test]
    fn a_payment_is_asked_for_read_and_confirmed() {
        let resources = Resources::default();
        let path = pay(&resources, "{\"creationDateTime\":\"2026-11-23\"}");
        let (_, before) = ask(&resources, Method::GET, &path, "").expect("known");
        assert_eq!(before["paymentRequest"]["creationDateTime"], "2026-11-23");
        assert_eq!(before["paymentRequest"]["paymentInformationStatus"], "ACTC");
        let (status, after) = ask(&resources, Method::POST, &format!("{path}/o-confirmation"), "{}").expect("known");
        assert_eq!((status, &after["paymentRequest"]["paymentInformationStatus"]), (StatusCode::OK, &json!("ACSC")));
        assert_eq!(ask(&resources, Method::GET, &path, "").expect("known").1, after);
    }

    #[test]
    fn the_oldest_payments_go_by_count_and_by_bytes() {
        let resources = Resources::default();
        let oldest = pay(&resources, "{}");
        (1..PAYMENTS).for_each(|_| drop(pay(&resources, "{}")));
        ask(&resources, Method::GET, &oldest, "").expect("still known");
        pay(&resources, "{}");
        assert_eq!(ask(&resources, Method::GET, &oldest, "").expect_err("gone").status, StatusCode::NOT_FOUND);
        let large = pay(&resources, &format!("{{\"a\":\"{}\"}}", "a".repeat(PAYMENT_BYTES)));
        ask(&resources, Method::GET, &large, "").expect("the last one stays");
        pay(&resources, "{}");
        let payments = resources.lock();
        assert_eq!((payments.requests.len(), payments.bytes), (1, 2));
    }

    #[test]
    fn what_is_not_there_or_not_taken_is_said() {
        for path in ["", "accounts/", "accounts/x/balances", "accounts/x/transactions", "payment-requests/x", "x"] {
            assert_eq!(refused(Method::GET, path, ""), StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(refused(Method::POST, "payment-requests/x/o-confirmation", "{}"), StatusCode::NOT_FOUND);
        for (method, path) in [(Method::POST, "accounts"), (Method::GET, "payment-requests")] {
            assert_eq!(refused(method, path, ""), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
        for body in ["", "[]", "{", "1"] {
            assert_eq!(refused(Method::POST, "payment-requests", body), StatusCode::BAD_REQUEST, "{body}");
        }
    }
}
