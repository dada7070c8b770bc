//! What the bank knows: two accounts, their transactions, and the payment requests it was given. Pure.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{Method, StatusCode};
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
/// Payment requests that are remembered; the oldest goes first.
const PAYMENTS: usize = 10_000;

/// The bank's memory.
#[derive(Default)]
pub(super) struct Resources {
    payments: Mutex<VecDeque<Payment>>,
}

struct Payment {
    id: String,
    document: Value,
    status: &'static str,
}

/// An answer before it is rendered.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Option<Value>,
    pub(super) location: Option<String>,
}

impl Reply {
    pub(super) fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body: Some(body), location: None }
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
        body: &[u8],
    ) -> Result<Reply, Fault> {
        let segments: Vec<&str> = path.split('/').collect();
        let get = || if method == Method::GET { Ok(()) } else { Err(wrong_method()) };
        let post = || if method == Method::POST { Ok(()) } else { Err(wrong_method()) };
        match segments.as_slice() {
            ["accounts"] => get().map(|()| Reply::ok(accounts(base))),
            ["accounts", id, "balances"] => get().and_then(|()| balances(base, id)),
            ["accounts", id, "transactions"] => get().and_then(|()| transactions(base, id, query)),
            ["end-user-identity"] => get().map(|()| Reply::ok(identity(base))),
            ["trusted-beneficiaries"] => get().map(|()| Reply::ok(beneficiaries(base))),
            ["payment-requests"] => post().and_then(|()| self.request_payment(base, body)),
            ["payment-requests", id] => get().and_then(|()| self.payment(base, id)),
            ["payment-requests", id, "o-confirmation"] => post().and_then(|()| self.confirm(base, id, body)),
            _ => Err(unknown()),
        }
    }

    fn request_payment(&self, base: &str, body: &[u8]) -> Result<Reply, Fault> {
        let document = object(body)?;
        let id = uuid::Uuid::new_v4().to_string();
        let location = format!("{base}/payment-requests/{id}");
        let consent = format!("https://www.becm.fr/oauth2/fr/sandbox/signin.html?paymentRequestResourceId={id}");
        let mut payments = self.lock();
        if payments.len() >= PAYMENTS {
            payments.pop_front();
        }
        payments.push_back(Payment { id, document, status: "ACTC" });
        Ok(Reply {
            status: StatusCode::CREATED,
            body: Some(
                json!({ "appliedAuthenticationApproach": "REDIRECT", "_links": { "consentApproval": { "href": consent } } }),
            ),
            location: Some(location),
        })
    }

    fn payment(&self, base: &str, id: &str) -> Result<Reply, Fault> {
        let payments = self.lock();
        let payment = payments.iter().find(|payment| payment.id == id).ok_or_else(unknown)?;
        Ok(Reply::ok(payment_document(base, payment)))
    }

    fn confirm(&self, base: &str, id: &str, body: &[u8]) -> Result<Reply, Fault> {
        object(body)?;
        let mut payments = self.lock();
        let payment = payments.iter_mut().find(|payment| payment.id == id).ok_or_else(unknown)?;
        payment.status = "ACSC";
        Ok(Reply::ok(payment_document(base, payment)))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Payment>> {
        // A list of payments is whole after any panic.
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

fn payment_document(base: &str, payment: &Payment) -> Value {
    let mut request = payment.document.clone();
    request["resourceId"] = json!(payment.id);
    request["paymentInformationStatus"] = json!(payment.status);
    json!({ "paymentRequest": request, "_links": { "self": link(format!("{base}/payment-requests/{}", payment.id)) } })
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
    Ok(Reply::ok(json!({
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
    let size = number("page_size", PAGE)?.min(TRANSACTIONS);
    let last = TRANSACTIONS.div_ceil(size);
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
    let entries: Vec<Value> = (from..(from + size).min(TRANSACTIONS)).map(transaction).collect();
    Ok(Reply::ok(json!({ "transactions": entries, "_links": links })))
}

fn transaction(number: usize) -> Value {
    json!({
        "resourceId": format!("T{number:06}"),
        "entryReference": format!("E{number:06}"),
        "transactionAmount": { "currency": "EUR", "amount": format!("{}.{:02}", number % 500, number % 100) },
        "creditDebitIndicator": if number.is_multiple_of(3) { "CRDT" } else { "DBIT" },
        "status": "BOOK",
        "bookingDate": format!("2026-10-{:02}", 28 - number % 28),
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
