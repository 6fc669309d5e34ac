//! What ONBUILD keeps can be read again.

use frontend::instruction::InstructionKind;
use frontend::{SourceFile, parse, parse_trigger};

#[test]
fn triggers_survive_the_image_config() {
    for text in [
        "RUN make \\\n  all",
        "COPY --from=a . /src",
        "copy <<EOF /x\n$content\nEOF",
        "RUN <<-A cat <<B\n\ta\n\tA\nb\nB",
    ] {
        let file = parse(&SourceFile::new("Dockerfile", format!("FROM a\nONBUILD {text}\n"))).expect(text);
        let InstructionKind::Onbuild(onbuild) = &file.instructions[1].kind else { panic!("{text}") };
        let again = parse_trigger(&SourceFile::new("trigger", onbuild.trigger.clone())).expect(text);
        assert_eq!(again.keyword.text, onbuild.keyword.text);
        let contents = |docs: &[frontend::instruction::Heredoc]| {
            docs.iter().map(frontend::instruction::Heredoc::chomped).collect::<Vec<_>>()
        };
        assert_eq!(contents(&again.heredocs), contents(&file.instructions[1].heredocs));
    }
}

#[test]
fn a_trigger_is_one_instruction() {
    for (text, expected) in [
        ("", "must be one instruction"),
        ("# comment", "must be one instruction"),
        ("RUN a\nRUN b", "must be one instruction"),
        ("FROM a", "FROM cannot be"),
        ("RNU a", "unknown instruction RNU"),
    ] {
        let problems = parse_trigger(&SourceFile::new("trigger", text)).expect_err(text);
        assert!(problems.to_string().contains(expected), "{text:?}: {problems}");
    }
}
