//! The error codes of `wasi:http` as a journal has them, and back.

use nexus_core::journal::HttpFailure;
use wasmtime_wasi_http::p2::bindings::http::types::{
    DnsErrorPayload, ErrorCode, FieldSizePayload, TlsAlertReceivedPayload,
};

/// Both ways from one table, so that no code can be in one and not in the other.
macro_rules! codes {
    (plain: $($plain:ident)*; size64: $($size64:ident)*; size32: $($size32:ident)*; field: $($field:ident)*; text: $($text:ident)*;) => {
        /// As the journal has it.
        pub(super) fn failure(code: &ErrorCode) -> HttpFailure {
            let of = |name: &str, text: Option<String>, number: Option<u64>| HttpFailure { name: name.to_owned(), text, number };
            match code {
                $(ErrorCode::$plain => of(stringify!($plain), None, None),)*
                $(ErrorCode::$size64(size) => of(stringify!($size64), None, *size),)*
                $(ErrorCode::$size32(size) => of(stringify!($size32), None, size.map(u64::from)),)*
                $(ErrorCode::$field(field) => of(stringify!($field), field.field_name.clone(), field.field_size.map(u64::from)),)*
                $(ErrorCode::$text(text) => of(stringify!($text), text.clone(), None),)*
                ErrorCode::HttpRequestHeaderSize(field) => {
                    let (name, size) = field.as_ref().map_or((None, None), |f| (f.field_name.clone(), f.field_size));
                    of("HttpRequestHeaderSize", name, size.map(u64::from))
                }
                ErrorCode::DnsError(dns) => of("DnsError", dns.rcode.clone(), dns.info_code.map(u64::from)),
                ErrorCode::TlsAlertReceived(alert) => {
                    of("TlsAlertReceived", alert.alert_message.clone(), alert.alert_id.map(u64::from))
                }
            }
        }

        /// From the journal; `None` for a name that there is not.
        pub(super) fn code(failure: &HttpFailure) -> Option<ErrorCode> {
            let HttpFailure { name, text, number } = failure.clone();
            let small = number.and_then(|number| u32::try_from(number).ok());
            let field = || FieldSizePayload { field_name: text.clone(), field_size: small };
            Some(match name.as_str() {
                $(stringify!($plain) => ErrorCode::$plain,)*
                $(stringify!($size64) => ErrorCode::$size64(number),)*
                $(stringify!($size32) => ErrorCode::$size32(small),)*
                $(stringify!($field) => ErrorCode::$field(field()),)*
                $(stringify!($text) => ErrorCode::$text(text),)*
                "HttpRequestHeaderSize" => {
                    ErrorCode::HttpRequestHeaderSize((text.is_some() || small.is_some()).then(field))
                }
                "DnsError" => ErrorCode::DnsError(DnsErrorPayload {
                    rcode: text,
                    info_code: number.and_then(|number| u16::try_from(number).ok()),
                }),
                "TlsAlertReceived" => ErrorCode::TlsAlertReceived(TlsAlertReceivedPayload {
                    alert_id: number.and_then(|number| u8::try_from(number).ok()),
                    alert_message: text,
                }),
                _ => return None,
            })
        }

        #[cfg(test)]
        fn all() -> Vec<ErrorCode> {
            let field = || FieldSizePayload { field_name: Some("x".into()), field_size: Some(9) };
            vec![
                $(ErrorCode::$plain,)*
                $(ErrorCode::$size64(Some(1 << 40)), ErrorCode::$size64(None),)*
                $(ErrorCode::$size32(Some(7)), ErrorCode::$size32(None),)*
                $(ErrorCode::$field(field()),)*
                $(ErrorCode::$text(Some("why".into())), ErrorCode::$text(None),)*
                ErrorCode::HttpRequestHeaderSize(Some(field())),
                ErrorCode::HttpRequestHeaderSize(None),
                ErrorCode::DnsError(DnsErrorPayload { rcode: Some("NXDOMAIN".into()), info_code: Some(3) }),
                ErrorCode::TlsAlertReceived(TlsAlertReceivedPayload { alert_id: Some(40), alert_message: None }),
            ]
        }
    };
}

codes! {
    plain: DnsTimeout DestinationNotFound DestinationUnavailable DestinationIpProhibited DestinationIpUnroutable
        ConnectionRefused ConnectionTerminated ConnectionTimeout ConnectionReadTimeout ConnectionWriteTimeout
        ConnectionLimitReached TlsProtocolError TlsCertificateError HttpRequestDenied HttpRequestLengthRequired
        HttpRequestMethodInvalid HttpRequestUriInvalid HttpRequestUriTooLong HttpResponseIncomplete HttpResponseTimeout
        HttpUpgradeFailed HttpProtocolError LoopDetected ConfigurationError;
    size64: HttpRequestBodySize HttpResponseBodySize;
    size32: HttpRequestHeaderSectionSize HttpRequestTrailerSectionSize HttpResponseHeaderSectionSize
        HttpResponseTrailerSectionSize;
    field: HttpRequestTrailerSize HttpResponseHeaderSize HttpResponseTrailerSize;
    text: HttpResponseTransferCoding HttpResponseContentCoding InternalError;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for one in all() {
            assert_eq!(code(&failure(&one)).map(|back| format!("{back:?}")), Some(format!("{one:?}")));
        }
        assert!(code(&HttpFailure { name: "NoSuchCode".into(), ..HttpFailure::default() }).is_none());
    }
}
