; JavaScript. What the captures mean is in c.scm.
(identifier) @name
(_ parameters: (_) body: (statement_block) @body)
(arrow_function body: (statement_block) @body)

[(function_declaration) (function_expression) (generator_function) (arrow_function)] @scope
[(generator_function_declaration) (method_definition) (statement_block) (switch_body)] @scope
[(for_statement) (for_in_statement) (catch_clause)] @scope

(variable_declarator name: (identifier) @declared)
(variable_declarator name: (array_pattern (identifier) @declared))
(variable_declarator name: (object_pattern (pair_pattern value: (identifier) @declared)))
(formal_parameters (identifier) @declared)
(formal_parameters (rest_pattern (identifier) @declared))
(formal_parameters (assignment_pattern left: (identifier) @declared))
(formal_parameters (array_pattern (identifier) @declared))
(formal_parameters (object_pattern (pair_pattern value: (identifier) @declared)))
(arrow_function parameter: (identifier) @declared)
(catch_clause parameter: (identifier) @declared)
(for_in_statement kind: _ left: (identifier) @declared)
(assignment_pattern right: (_) @outside)
(for_in_statement right: (_) @outside)

(call_expression function: (identifier) @fixed)
(new_expression constructor: (identifier) @fixed)
(function_declaration name: (identifier) @fixed)
(generator_function_declaration name: (identifier) @fixed)
(function_expression name: (identifier) @fixed)
(class_declaration name: (identifier) @fixed)
(class_heritage (identifier) @fixed)
; {x} names a property and a variable at once.
[(shorthand_property_identifier) (shorthand_property_identifier_pattern)] @fixed
[(import_statement) (export_clause)] @fixed
(jsx_opening_element name: (_) @fixed)
(jsx_closing_element name: (_) @fixed)
(jsx_self_closing_element name: (_) @fixed)
((call_expression function: (identifier) @frozen) (#eq? @frozen "eval"))
(with_statement) @frozen

(comment) @comment
[(comment) (template_string) (string) (jsx_text)] @opaque

(_ body: (statement_block . "{" @brace))
(_ consequence: (statement_block . "{" @brace))
(else_clause (statement_block . "{" @brace))
(finally_clause (statement_block . "{" @brace))

[(comment) (expression_statement (string))] @apart

(statement_block) @block
(lexical_declaration ";") @movable
(variable_declaration ";") @movable
(expression_statement
  (assignment_expression left: (identifier) @target) @harmless ";") @movable
[(identifier) (variable_declarator) (array) (parenthesized_expression)] @harmless
[(number) (string) (string_fragment) (escape_sequence) (true) (false) (null)] @harmless
[(undefined)] @harmless
(unary_expression operator: ["-" "+" "~" "!"]) @harmless @numeric
(binary_expression operator: ["+" "-" "*" "&" "|" "^" "<<" ">>"]) @harmless @numeric
[(try_statement) (function_declaration) (function_expression) (arrow_function)] @watcher
[(generator_function) (generator_function_declaration) (method_definition)] @watcher
