//! `docs/settings.md` is generated from the flags, so that it cannot be wrong. `INSTA_UPDATE=always` writes it anew.

use std::collections::BTreeSet;
use std::fs;

use clap::{Arg, Command, CommandFactory};
use groundling::config::Cli;

use crate::support::repository;

const PAGE: &str = "docs/settings.md";

const INTRODUCTION: &str = "# Settings

Settings are flags and environment variables; the flag wins, and an empty variable counts as unset. What belongs to one run of a command is
only a flag. A secret (token, password, database) can also be in a file that a variable of its name with `_FILE` names, such as
`LABEL_STUDIO_ACCESS_TOKEN_FILE=/run/secrets/token`. `1`, `true`, `yes` and `on` switch a setting on; `0`, `false`, `no` and `off` switch it
off. Variables of the Python backends are read too: see [Coming from the Python backends](coming-from-python.md). Many settings can also be set
for one project, in its [extra params](extra-params.md).

This page is generated from the flags of the program. `groundling COMMAND --help` shows the same text.
";

/// A flag, and the commands that have it.
struct Setting {
    heading: String,
    argument: Arg,
    commands: Vec<String>,
}

fn settings(cli: &Command) -> Vec<Setting> {
    let mut settings: Vec<Setting> = vec![];
    let visible = cli
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    for command in visible {
        let is_own = |argument: &&Arg| {
            let id = argument.get_id().as_str();
            !argument.is_hide_set()
                && argument.get_long().is_some()
                && id != "help"
                && id != "version"
        };
        for argument in command.get_arguments().filter(is_own) {
            let heading = match argument.get_help_heading() {
                Some(heading) => heading.to_owned(),
                None => format!("`groundling {}`", command.get_name()),
            };
            let known = settings.iter_mut().find(|setting| {
                let known = &setting.argument;
                setting.heading == heading
                    && known.get_long() == argument.get_long()
                    && help(known) == help(argument)
            });
            match known {
                Some(setting) => setting.commands.push(command.get_name().to_owned()),
                None => settings.push(Setting {
                    heading,
                    argument: argument.clone(),
                    commands: vec![command.get_name().to_owned()],
                }),
            }
        }
    }
    settings
}

/// The text of `--help`.
fn help(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help());
    help.map(ToString::to_string).unwrap_or_default()
}

/// A text for a cell of a table.
fn cell(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

/// The text without a default at its end, and that default.
fn split_default(text: &str) -> (&str, Option<&str>) {
    let text = text.trim();
    let default = text
        .rsplit_once("[default: ")
        .and_then(|(before, rest)| Some((before.trim_end(), rest.strip_suffix(']')?)));
    match default {
        Some((text, default)) => (text, Some(default)),
        None => (text, None),
    }
}

/// A row; the commands are named if they are not those of the whole section.
fn row(setting: &Setting, of_section: &[String]) -> String {
    let argument = &setting.argument;
    let mut flag = format!("`--{}`", argument.get_long().unwrap_or_default());
    if let Some(short) = argument.get_short() {
        flag += &format!(", `-{short}`");
    }
    let variable = argument
        .get_env()
        .map(|name| format!("`{}`", name.display()));
    let help = help(argument);
    let (text, described) = split_default(&help);
    let values: Vec<_> = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .filter(|value| !value.is_empty() && argument.get_action().takes_values())
        .collect();
    let default = match (values.is_empty(), described) {
        (false, _) => format!("`{}`", values.join(",")),
        (true, Some(described)) => described.to_owned(),
        (true, None) => String::new(),
    };
    let commands = match setting.commands == of_section {
        true => String::new(),
        false => format!(" *({})*", setting.commands.join(", ")),
    };
    format!(
        "| {flag} | {} | {} | {}{commands} |\n",
        variable.unwrap_or_default(),
        cell(&default),
        cell(text.trim_end_matches('.'))
    )
}

/// The commands of most settings of a section.
fn usual_commands<'a>(of_section: &[&'a Setting]) -> &'a [String] {
    let count = |commands: &[String]| {
        let same = of_section.iter();
        same.filter(|setting| setting.commands == commands).count()
    };
    let usual = of_section.iter().rev();
    let usual = usual.max_by_key(|setting| count(&setting.commands));
    usual.map_or(&[], |setting| &setting.commands)
}

/// The whole page.
fn page() -> String {
    let cli = Cli::command();
    let settings = settings(&cli);
    let mut page = INTRODUCTION.to_owned();
    let mut seen = BTreeSet::new();
    let headings = settings.iter().map(|setting| setting.heading.as_str());
    let headings: Vec<&str> = headings.filter(|heading| seen.insert(*heading)).collect();
    // what several commands share comes first
    let (own, shared): (Vec<&str>, Vec<&str>) = headings
        .into_iter()
        .partition(|heading| heading.starts_with('`'));
    for heading in shared.into_iter().chain(own) {
        let of_section = settings.iter();
        let of_section = of_section.filter(|setting| setting.heading == heading);
        let of_section: Vec<&Setting> = of_section.collect();
        let usual = usual_commands(&of_section);
        page += &format!("\n## {heading}\n\n");
        if !heading.starts_with('`') {
            let commands: Vec<String> = usual.iter().map(|name| format!("`{name}`")).collect();
            page += &format!("Of {}; other commands are named.\n\n", commands.join(", "));
        }
        page += "| flag | variable | default | meaning |\n|---|---|---|---|\n";
        page.extend(of_section.iter().map(|setting| row(setting, usual)));
    }
    page
}

#[test]
fn the_page_of_the_settings_is_that_of_the_flags() {
    let (path, page) = (repository(PAGE), page());
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "{PAGE} is not up to date: run INSTA_UPDATE=always cargo test --release --test integration settings_page"
    );
    for part in [
        "## Models",
        "`BOX_THRESHOLD`",
        "grounding-dino-tiny",
        "## `groundling annotate`",
    ] {
        assert!(page.contains(part), "{part}:\n{page}");
    }
}
