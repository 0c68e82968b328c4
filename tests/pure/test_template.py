"""Templates against what Go's text/template gives for the same text.

Results that need no data of ours are those of Docker 28.2.2's client, which has Go's engine:
`docker context inspect default --format TEMPLATE`.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dockpy.cli.template import Map, TemplateError, render

DATA: dict[str, Any] = {
    "Name": "/web",
    "Id": "abc",
    "Count": 3,
    "Zero": 0,
    "Size": 1.5,
    "On": True,
    "Off": False,
    "Args": ["-c", "sleep 1"],
    "None": None,
    "Empty": [],
    "State": {"Status": "running", "Pid": 42, "Health": {"Log": ["a", "b"]}},
    "Labels": Map({"b.c": "2", "a": "1"}),
    "Ports": Map({"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "90/tcp": None}),
    "Mounts": [{"Source": "/a", "Destination": "/b"}, {"Source": "/c", "Destination": "/d"}],
    "Add": lambda left, right: left + right,
}

RESULTS = [
    ("", ""),
    ("plain } text {", "plain } text {"),
    # fields
    ("{{.Name}}", "/web"),
    ("{{ .State.Status }}:{{.State.Pid}}", "running:42"),
    ("{{.State.Health.Log}}", "[a b]"),
    ("{{.Labels.a}}", "1"),
    ("{{.Labels.missing}}", "<no value>"),
    ("{{(.State).Status}}", "running"),
    ("{{(index .Mounts 1).Source}}", "/c"),
    ("{{.}}"[:3] + "Zero}}", "0"),
    ("{{.On}} {{.Off}}", "true false"),
    ("{{.Size}}", "1.5"),
    ("{{.None}}{{.Empty}}", "[][]"),
    ("{{.Labels}}", "map[a:1 b.c:2]"),
    ("{{.State.Health}}", "{[a b]}"),
    ("{{.Add 1 2}}", "3"),
    ("{{1 | .Add 4}}", "5"),
    # literals
    ('{{"a\\tb\\x41\\u00e9\\"\\101"}}', 'a\tbAé"A'),
    ("{{`raw \\n`}}", "raw \\n"),
    ("{{5}} {{-5}} {{0x10}} {{1.5}} {{true}}", "5 -5 16 1.5 true"),
    # white space and comments
    ("a  {{- .Zero -}}  b", "a0b"),
    ("a \n {{- /* note */ -}} \n b", "ab"),
    ("a{{/* {{.Name}} */}}b", "ab"),
    ("{{- .Zero}}", "0"),
    ("a {{-5}} b", "a -5 b"),
    ("{{.Name -}}\n\n{{- .Id}}", "/webabc"),
    # index, len, slice
    ('{{index .Labels "b.c"}}', "2"),
    ('[{{index .Labels "nope"}}]', "[]"),
    ("{{index .Args 1}}", "sleep 1"),
    ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
    ('{{index .Ports "80/tcp" 0}}', "{0.0.0.0 8080}"),
    ("{{len .Args}} {{len .Labels}} {{len .Name}} {{len .None}}", "2 2 4 0"),
    ("{{slice .Name 1}} {{slice .Args 0 1}}", "web [-c]"),
    # json
    ("{{json .State}}", '{"Status":"running","Pid":42,"Health":{"Log":["a","b"]}}'),
    ("{{json .None}} {{json .Name}} {{json .On}}", 'null "/web" true'),
    ("{{.Args | json}}", '["-c","sleep 1"]'),
    ("{{json .Labels.missing}}", "null"),
    # pipelines and functions
    ('{{.Name | printf "%s-%s" "x"}}', "x-/web"),
    ('{{join .Args ","}}', "-c,sleep 1"),
    ('{{split "a.b.c" "."}} {{index (split "a.b" ".") 1}}', "[a b c] b"),
    ("{{upper .Id}} {{lower `ABC`}} {{title `two words-a hE's`}}", "ABC abc Two Words-A HE's"),
    ("{{truncate .Name 2}} {{pad .Id 1 2}}|", "/w  abc  |"),
    ('{{println "a" 1}}', "a 1\n"),
    ('{{print "a" 1 2 "b"}}', "a1 2b"),
    ('{{printf "%d|%5d|%-5d|%05d|%x" 7 7 7 7 255}}', "7|    7|7    |00007|ff"),
    ('{{printf "%s|%8s|%-8s|%.2s|%q" .Id .Id .Id .Id .Id}}', 'abc|     abc|abc     |ab|"abc"'),
    ('{{printf "%v %v %t %%" .Args .Labels .On}}', "[-c sleep 1] map[a:1 b.c:2] true %"),
    ('{{printf "%.2f %g %q" .Size .Size .Args}}', '1.50 1.5 ["-c" "sleep 1"]'),
    ('{{printf "%d" .Id}}', "%!d(string=abc)"),
    ('{{printf "%s"}}', "%!s(MISSING)"),
    ('{{printf "x" 1}}', "x%!(EXTRA int=1)"),
    # logic
    ("{{eq .Count 3}} {{ne .Count 3}} {{eq .Count 1 2 3}}", "true false true"),
    ("{{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 3}}", "true true false false"),
    ('{{eq .Name "/web"}} {{lt "a" "b"}} {{eq .On true}}', "true true true"),
    ("{{and .On .Zero}} {{or .Zero .Id}} {{not .Empty}}", "0 abc true"),
    ("{{and .Off (index .Args 99)}}", "false"),
    # if, with
    ("{{if .On}}a{{end}}{{if .Off}}b{{end}}", "a"),
    ("{{if .Zero}}a{{else}}b{{end}}", "b"),
    ("{{if eq .Count 1}}1{{else if eq .Count 3}}3{{else}}?{{end}}", "3"),
    ("{{if .Empty}}a{{else if .None}}b{{else}}c{{end}}", "c"),
    ("{{if .State}}struct{{end}}{{if .Labels.missing}}no{{end}}", "struct"),
    ("{{with .State}}{{.Pid}} {{$.Name}}{{end}}", "42 /web"),
    ("{{with .None}}a{{else}}{{.Name}}{{end}}", "/web"),
    ("{{with .None}}a{{else with .State}}{{.Pid}}{{end}}", "42"),
    ("{{with $x := .Count}}{{$x}}{{end}}", "3"),
    # range
    ("{{range .Args}}<{{.}}>{{end}}", "<-c><sleep 1>"),
    ("{{range $i, $e := .Args}}{{if $i}}, {{end}}{{$i}}={{$e}}{{end}}", "0=-c, 1=sleep 1"),
    ("{{range $e := .Args}}{{$e}};{{end}}", "-c;sleep 1;"),
    ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a=1 b.c=2 "),
    ("{{range .Empty}}x{{else}}none{{end}}", "none"),
    ("{{range .None}}x{{else}}none{{end}}", "none"),
    ("{{range .Mounts}}{{.Source}}:{{.Destination}} {{end}}", "/a:/b /c:/d "),
    (
        "{{range $p, $c := .Ports}}{{$p}}{{range $c}}->{{.HostPort}}{{end}} {{end}}",
        "80/tcp->8080 90/tcp ",
    ),
    ("{{range .Args}}{{if eq . `-c`}}{{continue}}{{end}}{{.}}{{end}}", "sleep 1"),
    ("{{range .Args}}{{.}}{{break}}{{end}}", "-c"),
    ("{{range .Args}}{{$.Id}}{{end}}", "abcabc"),
    # variables
    ("{{$x := 5}}{{$x}}", "5"),
    ("{{$x := 1}}{{if .On}}{{$x = 2}}{{end}}{{$x}}", "2"),
    ("{{$x := 1}}{{if .On}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21"),
    ("{{$x := 0}}{{range .Args}}{{$x = .}}{{end}}{{$x}}", "sleep 1"),
    ("{{$s := .State}}{{$s.Pid}}", "42"),
]

ERRORS = [
    ("{{.Nope}}", "column 3: there is no field Nope"),
    ("{{.State.Nope}}", "column 9: there is no field Nope"),
    ("{{.Count.X}}", "column 9: no field X: what stands before it is a int"),
    ("{{.None.X}}", "no field X: what stands before it has no value"),
    ("{{.Labels.missing.X}}", "no field X: what stands before it has no value"),
    ("abc {{.Name", "column 7: the action is not closed"),
    ("{{", "the action is not closed"),
    ("{{}}", "column 1: the action is empty"),
    ('{{"abc}}', "the string is not closed"),
    ("{{.Name | }}", "a value is missing"),
    ("{{| json}}", "a value is missing"),
    ("{{nope .Name}}", "column 3: there is no function 'nope'"),
    ("{{.Name .Id}}", "takes no arguments"),
    ("{{`a` 1}}", "takes no arguments"),
    ("{{.Id | .Name}}", "takes no arguments"),
    ("{{json upper .Name}}", "put ( ) around 'upper'"),
    ("{{if .On}}", "column 1: the block is not closed"),
    ("{{range .Args}}{{else}}", "column 1: the block is not closed"),
    ("{{end}}", "unexpected end"),
    ("{{else}}", "unexpected else"),
    ("{{if .On}}{{else}}{{else}}{{end}}", "unexpected else"),
    ("{{if .On}}{{else what}}{{end}}", "unexpected 'what' after else"),
    ("{{break}}", "break outside range"),
    ("{{define `x`}}{{end}}", "define is not available here"),
    ("{{(.Name}}", "the parenthesis is not closed"),
    ("{{.Name)}}", "unexpected ')'"),
    ("{{$x}}", "undefined variable $x"),
    ("{{if .On}}{{$x := 1}}{{end}}{{$x}}", "undefined variable $x"),
    ("{{$y = 1}}", "undefined variable $y"),
    ("{{index .Args 9}}", "index: index 9 is out of range, there are 2"),
    ("{{index .Args `x`}}", "is not a number"),
    ("{{index .None 1}}", "there is nothing to look in"),
    ("{{eq 1 `a`}}", "are of different kinds"),
    ("{{eq 1 1.0}}", "are of different kinds"),
    ("{{'a'}}", "unexpected: \"'a'}}\""),
    ("{{eq 1}}", "eq: it needs two values"),
    ("{{lt .On true}}", "cannot be compared"),
    ("{{len 5}}", "has no length"),
    ("{{len}}", "len: these arguments do not fit"),
    ("{{upper 5}}", "is not a text"),
    ("{{join .Name `,`}}", "a list expected"),
    ("{{range .Count}}{{end}}", "range cannot go over 3"),
    ("a\nb {{.Nope}}", "line 2, column 5"),
    ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deeply"),
]


@pytest.mark.parametrize(("template", "expected"), RESULTS, ids=[one for one, _ in RESULTS])
def test_a_template_gives_what_go_gives(template: str, expected: str) -> None:
    assert render(template, DATA) == expected


@pytest.mark.parametrize(("template", "expected"), ERRORS, ids=[one[:40] for one, _ in ERRORS])
def test_a_wrong_template_is_one_line_with_its_place(template: str, expected: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(template, DATA)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_template_serves_many_threads_at_once() -> None:
    template = "{{$x := 0}}{{range $i, $e := .List}}{{$x = $e}}{{end}}{{$x}}"
    found: dict[int, str] = {}

    def one(number: int) -> None:
        found[number] = render(template, {"List": [number] * 200})

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {number: str(number) for number in range(8)}
