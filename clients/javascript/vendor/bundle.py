"""Makes `nats.mjs` and `nats-node.mjs` from packages of the npm registry, unchanged, so that neither Node nor a browser needs a build step.

    python3 bundle.py DIRECTORY     # with the .tgz files that `npm pack` makes of the packages named in `PACKAGES`

The packages are CommonJS. Each file becomes a function in a table, and `require` looks it up there.
"""
import hashlib, json, pathlib, posixpath, re, sys, tarfile

PACKAGES = ["tweetnacl", "@nats-io/nuid", "@nats-io/nkeys", "@nats-io/nats-core", "@nats-io/jetstream", "@nats-io/kv"]
NODE = ["@nats-io/transport-node"]

LOADER = """
const loaded = new Map();
export function load(name, external) {
  if (loaded.has(name)) return loaded.get(name).exports;
  if (!(name in modules)) return external?.(name) ?? {};
  const module = { exports: {} };
  loaded.set(name, module);
  const [resolved, body] = modules[name];
  body(module, module.exports, (wanted) => load(resolved[wanted] ?? wanted, external));
  return module.exports;
}
"""


def main(directory):
    found = {}
    for path in sorted(pathlib.Path(directory).glob("*.tgz")):
        with tarfile.open(path) as archive:
            files = {posixpath.normpath(m.name.partition("/")[2]): archive.extractfile(m).read() for m in archive if m.isfile()}
        package = json.loads(files["package.json"])
        found[package["name"]] = (package, files, hashlib.sha256(path.read_bytes()).hexdigest())
    notice = [f"// {name} {found[name][0]['version']} ({found[name][0]['license']}), sha256 of the package {found[name][2]}" for name in PACKAGES + NODE]
    here = pathlib.Path(__file__).parent
    core = table(found, PACKAGES)
    names = ", ".join(["wsconnect", "headers", "Events", "nanos"])
    here.joinpath("nats.mjs").write_text(
        "// Made by bundle.py from packages of the npm registry; the licences are in LICENSES.\n" + "\n".join(notice[:-1]) + "\n"
        + "export const modules = {\n" + core + "};\n" + LOADER
        + f'export const {{ {names} }} = load("@nats-io/nats-core");\n'
        + 'export const { jetstream, jetstreamManager, AckPolicy, DeliverPolicy } = load("@nats-io/jetstream");\n'
        + 'export const { Kvm } = load("@nats-io/kv");\n')
    here.joinpath("nats-node.mjs").write_text(
        "// Made by bundle.py: what Node needs to connect over TCP.\n" + notice[-1] + "\n"
        + 'import { createRequire } from "node:module";\nimport { load, modules } from "./nats.mjs";\n'
        + "Object.assign(modules, {\n" + table(found, NODE) + "});\n"
        + 'export const { connect } = load("@nats-io/transport-node", createRequire(import.meta.url));\n')
    licences = []
    for name in PACKAGES + NODE:
        text = found[name][1]["LICENSE"].decode().strip()
        if text not in (known for _, known in licences):
            licences.append(([n for n in PACKAGES + NODE if found[n][1]["LICENSE"].decode().strip() == text], text))
    here.joinpath("LICENSES").write_text("\n\n".join(f"{', '.join(names)}:\n\n{text}\n" for names, text in licences))


def table(found, packages):
    """The files that are reached from the packages' entry points, as properties of an object."""
    text = []
    for name in packages:
        package, files, _ = found[name]
        entries = {name: package.get("main") or package["exports"]["."]}
        if isinstance(package.get("exports"), dict) and "./internal" in package["exports"]:
            entries[name + "/internal"] = package["exports"]["./internal"]
        done, todo = set(), []
        for alias, file in entries.items():
            file = posixpath.normpath(file)
            text.append(f'{json.dumps(alias)}: [{{}}, (module, exports, require) => {{ module.exports = require({json.dumps(name + "/" + file)}); }}],\n')
            todo.append(file)
        while todo:
            file = todo.pop()
            if file in done:
                continue
            done.add(file)
            source = files[file].decode()
            source = "\n".join(line for line in source.splitlines() if not line.startswith("//# sourceMappingURL"))
            resolved = {}
            for wanted in required(source):
                if wanted.startswith("."):
                    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), wanted))
                    target = next(t for t in (target, target + ".js", target + "/index.js") if t in files)
                    resolved[wanted] = f"{name}/{target}"
                    todo.append(target)
            text.append(f"{json.dumps(name + '/' + file)}: [{json.dumps(resolved)}, function (module, exports, require) {{\n{source}\n}}],\n")
    return "".join(text)


def required(source):
    return re.findall(r'require\("([^"]+)"\)', source)


if __name__ == "__main__":
    main(*sys.argv[1:])
