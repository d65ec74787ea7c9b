//! Converting a stream, event by event.

use bytes::BytesMut;

use super::AnswerContext;
use super::calls::Restorer;
use super::failure;
use super::sequence::Sequencer;
use crate::domain::chat::{ProviderError, StreamEvent};
use crate::domain::label::ApiFormat;
use crate::wire::error::ApiError;
use crate::wire::error::words::kind_of_status;
use crate::wire::{anthropic, openai_chat, openai_responses};

/// Reads the events of one format.
#[derive(Debug)]
enum Decoder {
    Chat(openai_chat::stream::Decoder),
    Responses(openai_responses::stream::Decoder),
    Anthropic(anthropic::stream::Decoder),
}

/// Writes the events of one format.
#[derive(Debug)]
enum Encoder {
    Chat(openai_chat::stream::Encoder),
    Responses(openai_responses::stream::Encoder),
    Anthropic(anthropic::stream::Encoder),
}

impl Encoder {
    fn write(&mut self, event: StreamEvent, context: &AnswerContext, out: &mut BytesMut) {
        match self {
            Self::Chat(encoder) => encoder.write(event, context, out),
            Self::Responses(encoder) => encoder.write(event, context, out),
            Self::Anthropic(encoder) => encoder.write(event, context, out),
        }
    }
}

/// Turns a provider's event stream into one of the client's format: every event is converted at once, and the events
/// come in the order of the client's format.
#[derive(Debug)]
pub struct StreamConverter {
    decoder: Decoder,
    sequencer: Sequencer,
    restorer: Restorer,
    encoder: Encoder,
    context: AnswerContext,
    /// Whether the stop reason has come.
    stopped: bool,
    /// Whether the client's stream is complete, or broken off; nothing is written any more.
    done: bool,
    /// Whether it was broken off.
    failed: bool,
}

impl StreamConverter {
    /// From the provider's format to the client's.
    pub fn new(from: ApiFormat, to: ApiFormat, context: AnswerContext) -> Self {
        Self {
            decoder: match from {
                ApiFormat::OpenAiChat => Decoder::Chat(Default::default()),
                ApiFormat::OpenAiResponses => Decoder::Responses(Default::default()),
                ApiFormat::Anthropic => Decoder::Anthropic(Default::default()),
            },
            sequencer: Sequencer::default(),
            restorer: Restorer::default(),
            encoder: match to {
                ApiFormat::OpenAiChat => Encoder::Chat(Default::default()),
                ApiFormat::OpenAiResponses => Encoder::Responses(Default::default()),
                ApiFormat::Anthropic => Encoder::Anthropic(Default::default()),
            },
            context,
            stopped: false,
            done: false,
            failed: false,
        }
    }

    /// Takes one event of the provider and appends the converted events. `event` is its `event:` name, if any.
    pub fn feed(&mut self, event: Option<&str>, data: &str, out: &mut BytesMut) {
        if self.done {
            return;
        }
        if event == Some("error") && !matches!(data.trim_ascii(), "" | "[DONE]") {
            return self.write(StreamEvent::Failed(failure::read(data.as_bytes(), None)), out);
        }
        let mut events = Vec::new();
        match &mut self.decoder {
            Decoder::Chat(decoder) => decoder.read(data, &mut events),
            Decoder::Responses(decoder) => decoder.read(event, data, &mut events),
            Decoder::Anthropic(decoder) => decoder.read(event, data, &mut events),
        }
        for event in events {
            self.write(event, out);
        }
    }

    /// The provider's stream has ended. Completes the client's: normally if the model had stopped, else as a broken
    /// one.
    pub fn finish(&mut self, out: &mut BytesMut) {
        if let Decoder::Chat(decoder) = &mut self.decoder {
            let mut events = Vec::new();
            decoder.finish(&mut events);
            for event in events {
                self.write(event, out);
            }
        }
        if self.stopped {
            self.write(StreamEvent::End, out);
        } else {
            let message = "The provider's stream ended before the answer was complete";
            self.fail(&ApiError::new(502, message), out);
        }
    }

    /// The provider's stream broke off. Ends the client's stream with this error in its format.
    pub fn fail(&mut self, error: &ApiError, out: &mut BytesMut) {
        let (kind, message) = (kind_of_status(error.status), error.message.to_string());
        let code = error.code.as_deref().map(str::to_owned);
        self.write(StreamEvent::Failed(ProviderError { kind, message, code, param: None }), out);
    }

    /// Whether the client's stream has been ended, well or with an error.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the client's stream was ended with an error.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    fn write(&mut self, event: StreamEvent, out: &mut BytesMut) {
        if self.done {
            return;
        }
        self.failed = matches!(event, StreamEvent::Failed(_));
        match event {
            StreamEvent::Stop(_) => self.stopped = true,
            StreamEvent::End | StreamEvent::Failed(_) => self.done = true,
            _ => {}
        }
        let Self { sequencer, restorer, encoder, context, .. } = self;
        sequencer.pass(event, &mut |event| {
            restorer.pass(event, context, &mut |event| encoder.write(event, context, out));
        });
    }
}
